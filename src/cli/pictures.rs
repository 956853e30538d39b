//! Pictures that options name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinhole::Result;
use pinhole::image::Picture;

use super::printer::Printer;

/// The picture at `path`, if there is a path.
pub(super) fn picture(path: &Option<PathBuf>, printer: &Printer) -> Result<Option<Arc<Picture>>> {
    path.as_ref().map(|path| open_picture(path, printer)).transpose()
}

/// The picture at `path`. What there is to say of how it was read goes to `printer`.
pub(super) fn open_picture(path: &Path, printer: &Printer) -> Result<Arc<Picture>> {
    let picture = Picture::open(path)?;
    for note in picture.notes() {
        printer.warn(note);
    }
    Ok(Arc::new(picture))
}
