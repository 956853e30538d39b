//! Previews as options give them, and the files that show them.

use std::path::PathBuf;

use pinhole::image::{Format, Image};
use pinhole::{Error, Result};
use pinhole_quant::output::AtomicFile;

/// Where previews go, and how often.
#[derive(Clone, Debug)]
pub(super) struct Preview {
    /// The file.
    pub(super) path: PathBuf,
    /// After how many steps there is one each.
    pub(super) every: usize,
}

/// Parses `FILE` or `FILE:EVERY`.
pub(super) fn parse(text: &str) -> Result<Preview, String> {
    // A colon may be part of the path, too, if no number follows.
    if let Some((path, number)) = text.rsplit_once(':')
        && !path.is_empty()
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        return match number.parse() {
            Ok(1..) => Ok(Preview { path: path.into(), every: number.parse().unwrap_or(1) }),
            _ => Err("EVERY is a number of steps from 1 on".to_owned()),
        };
    }
    Ok(Preview { path: text.into(), every: 1 })
}

/// The files that show what pictures look like so far, one for each.
#[derive(Debug, Default)]
pub(super) struct Previews {
    paths: Vec<PathBuf>,
    format: Option<Format>,
}

impl Previews {
    /// At `paths`, in the format that their names say.
    ///
    /// # Errors
    /// [`Error::Option`] for a name of no picture, [`Error::Io`] if one cannot be written.
    pub(super) fn create(paths: Vec<PathBuf>) -> Result<Previews> {
        let Some(first) = paths.first() else { return Ok(Previews::default()) };
        let format = Format::of(first)?;
        for path in &paths {
            // What is there stays until the first preview; nothing is left of this one.
            drop(AtomicFile::create(path, true).map_err(Error::output)?);
        }
        Ok(Previews { paths, format: Some(format) })
    }

    /// The files.
    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Shows `image` of picture number `index`: the file is replaced as a whole.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn show(&self, index: usize, image: &Image) -> Result<()> {
        let (Some(path), Some(format)) = (self.paths.get(index), self.format) else { return Ok(()) };
        let mut file = AtomicFile::create(path, true).map_err(Error::output)?;
        image.write(format, &mut file, &[]).map_err(|error| Error::io("write", path, error))?;
        file.commit().map_err(Error::output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_follow_the_file() {
        let parsed = |text| parse(text).map(|preview| (preview.path.display().to_string(), preview.every));
        assert_eq!(parsed("a.png"), Ok(("a.png".into(), 1)));
        assert_eq!(parsed("a.png:5"), Ok(("a.png".into(), 5)));
        assert_eq!(parsed("c:/a.png"), Ok(("c:/a.png".into(), 1)));
        assert_eq!(parsed("a:b.jpg:10"), Ok(("a:b.jpg".into(), 10)));
        assert_eq!(parsed("a.png:"), Ok(("a.png:".into(), 1)));
        for text in ["a.png:0", "a.png:99999999999999999999999"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
