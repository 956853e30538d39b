//! The only picture that a model looks at, where nothing of it is cut off: it stands in the middle of whole tokens, and around it is what it
//! reflects.

use super::choices::ReferenceResize;
use super::request::Request;
use super::rules::{Padded, References, Rules};
use crate::image::{Filter, Image, Mirror, Picture};
use crate::{Error, Result};

/// How the only picture that `request` has a model look at is kept whole, if it is.
pub(super) fn padded(rules: &References, request: &Request) -> Option<Padded> {
    rules.cropped?.alone.filter(|_| request.references.len() == 1)
}

/// The size of `picture`.
pub(super) fn size_of(picture: &Picture) -> [usize; 2] {
    [picture.image().width(), picture.image().height()]
}

impl Padded {
    /// The size that a picture of `own` pixels is resized to, and its size with what is around it, whose sides are multiples of
    /// `multiple`.
    fn resized(&self, own: [usize; 2], multiple: usize, resize: ReferenceResize) -> [[usize; 2]; 2] {
        match resize {
            ReferenceResize::Auto => self.sizes(own, multiple),
            ReferenceResize::None => [own, self.around(own, multiple)],
        }
    }

    /// The size with what is around it of a picture of `own` pixels, as `request` has it.
    ///
    /// # Errors
    /// [`Error::Option`] for one that is too large and not to be resized.
    pub(super) fn checked(&self, own: [usize; 2], multiple: usize, request: &Request) -> Result<[usize; 2]> {
        let [whole, around] = self.resized(own, multiple, request.reference_resize);
        if whole.iter().zip(&around).any(|(whole, around)| whole > around) {
            let expected = format!("sides of at most {} pixels, if it is not resized", self.most_side);
            return Err(Error::option("--reference", expected, format!("{}x{}", own[0], own[1])));
        }
        Ok(around)
    }

    /// The samples of `image` within `width` by `height` pixels, which [`checked`](Padded::checked) gave.
    pub(super) fn samples(
        &self,
        image: &Image,
        [width, height]: [usize; 2],
        (multiple, request): (usize, &Request),
    ) -> Result<Vec<f32>> {
        let own = [image.width(), image.height()];
        let [[whole_width, whole_height], _] = self.resized(own, multiple, request.reference_resize);
        // In one that is smaller than a token, the neighbours of its edge are too few.
        let is_small = whole_width.min(whole_height) <= multiple;
        let mirror = if is_small { Mirror::WithEdge } else { Mirror::WithoutEdge };
        image.resized(whole_width, whole_height, Filter::Lanczos)?.reflected(width, height, mirror)?.to_samples()
    }
}

/// What is kept of a picture of `size` that is as large as one that the model looks at, with what is around that.
pub(super) fn kept(rules: &Rules, request: &Request, size: [usize; 2]) -> Option<[usize; 2]> {
    let padded = padded(&rules.references?, request)?;
    let own = size_of(request.references.first()?);
    let [whole, _] = padded.resized(own, rules.multiple, request.reference_resize);
    Some(whole).filter(|whole| request.width.is_none() && request.height.is_none() && *whole != size)
}
