//! Where outputs may go: nowhere that something else is lost.

use std::fs;
use std::path::{Path, PathBuf};

use pinhole::safetensors::Safetensors;
use pinhole::{Error, Result, image, trace, video};

/// A file that a command reads or writes, and the option that says so.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Named {
    pub(in crate::cli) option: &'static str,
    pub(in crate::cli) path: PathBuf,
}

/// What an output replaces: what was there before is of the same kind, or it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Kind {
    Picture,
    Film,
    Latents,
    Trace,
}

/// Refuses outputs that would replace an input, one another, or something that is of another kind.
///
/// # Errors
/// [`Error::Option`], [`Error::Exists`].
pub(in crate::cli) fn check(outputs: &[(Named, Kind)], inputs: &[Named]) -> Result<()> {
    for (i, (output, kind)) in outputs.iter().enumerate() {
        let earlier = outputs[..i].iter().map(|(other, _)| other);
        for other in earlier.chain(inputs) {
            if is_same(&output.path, &other.path) {
                let expected = format!("another file than that of {}", other.option);
                return Err(Error::option(output.option, expected, output.path.display().to_string()));
            }
        }
        check_kind(&output.path, *kind)?;
    }
    Ok(())
}

/// Whether two paths lead to one file, which need not be there yet.
fn is_same(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) {
        use std::os::unix::fs::MetadataExt;
        return (one.dev(), one.ino()) == (other.dev(), other.ino());
    }
    matches!((place(one), place(other)), (Some(one), Some(other)) if one == other)
}

/// The folder as the system knows it, and the name in it.
fn place(path: &Path) -> Option<PathBuf> {
    if let Ok(path) = fs::canonicalize(path) {
        return Some(path);
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
}

/// Refuses to replace a file that is there by one of another `kind`.
fn check_kind(path: &Path, kind: Kind) -> Result<()> {
    match kind {
        Kind::Picture => image::check_replaced(path),
        Kind::Film => video::check_replaced(path),
        Kind::Latents => check_latents(path),
        Kind::Trace => trace::check_replaced(path),
    }
}

fn check_latents(path: &Path) -> Result<()> {
    // What is no file is refused where it is created.
    if !fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() > 0) {
        return Ok(());
    }
    if Safetensors::open(path).is_ok_and(|file| file.index.iter().map(|(name, _)| name).eq(["latents"])) {
        return Ok(());
    }
    let hint = "it holds no latents, so it is not replaced: choose another name";
    Err(Error::Exists { path: path.to_owned(), hint: Some(hint.into()) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn named(option: &'static str, path: &Path) -> Named {
        Named { option, path: path.to_owned() }
    }

    #[test]
    fn outputs_and_inputs_are_different_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("in.png"), "\u{89}").unwrap();
        fs::hard_link(at("in.png"), at("hard.png")).unwrap();
        let check = |outputs: [&str; 2]| {
            let outputs = outputs.map(|name| (named("--output", &at(name)), Kind::Picture));
            check(&outputs, &[named("--image", &at("in.png"))])
        };
        check(["a.png", "b.png"]).unwrap();
        fs::create_dir(at("sub")).unwrap();
        for same in ["a.png", "sub/../a.png", "./a.png"] {
            let error = check(["a.png", same]).unwrap_err().to_string();
            assert!(error.starts_with("--output: expected another file than that of --output, found "), "{error}");
        }
        for same in ["in.png", "hard.png", "sub/../in.png"] {
            let error = check(["a.png", same]).unwrap_err().to_string();
            assert!(error.starts_with("--output: expected another file than that of --image, found "), "{error}");
        }
    }

    #[test]
    fn only_the_same_kind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("empty"), "").unwrap();
        fs::write(at("png"), b"\x89PNG\r\n\x1a\nrest").unwrap();
        fs::write(at("webp"), b"RIFF....WEBPVP8 ").unwrap();
        fs::write(at("gguf"), "GGUF").unwrap();
        let allowed = |name: &str, kind| check(&[(named("-o", &at(name)), kind)], &[]).is_ok();
        fs::write(at("trace"), "{\n  \"displayTimeUnit\": \"ms\",\n  \"traceEvents\": []\n}\n").unwrap();
        assert!(allowed("trace", Kind::Trace) && allowed("new", Kind::Trace) && !allowed("gguf", Kind::Trace));
        for name in ["empty", "new", "png", "webp"] {
            assert!(allowed(name, Kind::Picture), "{name}");
        }
        assert!(!allowed("gguf", Kind::Picture) && !allowed("gguf", Kind::Latents) && !allowed("png", Kind::Latents));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("gguf"), at("link")).unwrap();
            assert!(!allowed("link", Kind::Picture));
        }
    }
}
