//! What models are called.

use std::fs;
use std::path::{self, Path};

/// The name of the model at `path`, for people: that of the file or folder, without what marks its format. A snapshot in
/// Hugging Face's cache has the name of its repository.
pub fn model_name(path: &Path) -> String {
    let absolute = match path.file_name() {
        Some(_) => path::absolute(path),
        None => fs::canonicalize(path),
    };
    let absolute = absolute.unwrap_or_else(|_| path.to_owned());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut folders = absolute.ancestors();
    let (own, parent, above) =
        (folders.next().and_then(name), folders.next().and_then(name), folders.next().and_then(name));
    let own = own.unwrap_or_else(|| path.display().to_string());
    let snapshot = above.filter(|_| parent.as_deref() == Some("snapshots"));
    if let Some(repository) = snapshot.as_deref().and_then(repository).or_else(|| repository(&own)) {
        return repository.to_owned();
    }
    let bare = [".gguf", ".safetensors"].into_iter().find_map(|end| own.strip_suffix(end));
    bare.map(str::to_owned).unwrap_or(own)
}

/// The repository's own name in `models--OWNER--NAME`, as Hugging Face's cache calls its folders.
fn repository(folder: &str) -> Option<&str> {
    folder.strip_prefix("models--")?.split_once("--").map(|(_, name)| name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_what_people_call_it() {
        for (path, name) in [
            ("a/flux1-dev.gguf", "flux1-dev"),
            ("ae.safetensors", "ae"),
            ("models/FLUX.1-schnell/", "FLUX.1-schnell"),
            ("models/FLUX.1-schnell/.", "FLUX.1-schnell"),
            (
                "hub/models--black-forest-labs--FLUX.1-dev/snapshots/0ef5fff789c832c5c7f4e127f94c8b54bbcced44",
                "FLUX.1-dev",
            ),
            ("hub/models--black-forest-labs--FLUX.1-dev", "FLUX.1-dev"),
            ("hub/models--a--b--c/snapshots/x", "b--c"),
            ("snapshots/0ef5fff7", "0ef5fff7"),
            // A point in a name is no mark of a format.
            ("FLUX.1-dev", "FLUX.1-dev"),
            ("FLUX.1-dev.gguf", "FLUX.1-dev"),
        ] {
            assert_eq!(model_name(Path::new(path)), name, "{path}");
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(model_name(Path::new(".")), here.file_name().unwrap().to_str().unwrap());
        let above = here.parent().unwrap();
        assert_eq!(model_name(Path::new("..")), above.file_name().unwrap().to_str().unwrap());
    }
}
