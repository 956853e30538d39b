//! How far numbers and pictures are from their reference.
//!
//! Pictures are 8-bit RGB, row by row, three bytes a pixel. Sums are kept in double precision.

/// The largest value of a channel.
const PEAK: f64 = 255.0;

/// Mean square of the difference over the mean square of `reference`: 0 where they are equal, NaN where a number is
/// not finite.
///
/// An all-zero reference gives 0 for an all-zero `value`, and infinity for any other.
///
/// `None` where the lengths differ or are 0.
pub fn nmse(reference: &[f32], value: &[f32]) -> Option<f64> {
    let error = sum_of_squares(reference, value, |r, v| v - r)?;
    let power = sum_of_squares(reference, value, |r, _| r)?;
    Some(if error == 0.0 { 0.0 } else { error / power })
}

/// Mean square of the difference. `None` where the lengths differ or are 0.
pub fn mse(reference: &[f32], value: &[f32]) -> Option<f64> {
    Some(sum_of_squares(reference, value, |r, v| v - r)? / reference.len() as f64)
}

fn sum_of_squares(a: &[f32], b: &[f32], of: impl Fn(f64, f64) -> f64) -> Option<f64> {
    let same = a.len() == b.len() && !a.is_empty();
    same.then(|| a.iter().zip(b).map(|(&a, &b)| of(a.into(), b.into()).powi(2)).sum())
}

/// The largest difference between two numbers in the same place; NaN where one is not finite on both sides. `None`
/// where the lengths differ or are 0.
pub fn max_error(reference: &[f32], value: &[f32]) -> Option<f64> {
    if reference.len() != value.len() || reference.is_empty() {
        return None;
    }
    let errors = reference.iter().zip(value).map(|(&r, &v)| (f64::from(v) - f64::from(r)).abs());
    // `f64::max` would pass over a NaN.
    Some(errors.fold(0.0, |worst, error| if error.is_nan() || error > worst { error } else { worst }))
}

/// Peak signal-to-noise ratio in dB over all channels, 10 log10(255^2 / MSE); infinite where the pictures are equal.
///
/// `None` where the lengths differ or are 0.
pub fn psnr(a: &[u8], b: &[u8]) -> Option<f64> {
    if a.len() != b.len() || a.is_empty() {
        return None;
    }
    let error: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    Some(10.0 * (PEAK * PEAK * a.len() as f64 / error as f64).log10())
}

/// The largest difference of a channel, 0 to 255. `None` where the lengths differ or are 0.
pub fn max_channel_error(a: &[u8], b: &[u8]) -> Option<u8> {
    let errors = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    if a.len() == b.len() { errors.max() } else { None }
}

/// 8-bit luma of 8-bit RGB: ITU-R BT.601's 0.299 R + 0.587 G + 0.114 B in 16-bit fixed point, rounded, which is what
/// Pillow's `convert("L")` gives, so that anyone can check a figure. Bytes after the last whole pixel are passed
/// over.
pub fn luma(rgb: &[u8]) -> Vec<u8> {
    const WEIGHTS: [u32; 3] = [19595, 38470, 7471];
    let (pixels, _) = rgb.as_chunks::<3>();
    let mut luma = Vec::with_capacity(pixels.len());
    for pixel in pixels {
        // The weights add up to 65536, so the sum is at most 255.5 times that.
        let sum: u32 = pixel.iter().zip(WEIGHTS).map(|(&channel, weight)| u32::from(channel) * weight).sum();
        luma.push(((sum + 0x8000) >> 16) as u8);
    }
    luma
}

/// Half the side of SSIM's window, less the middle: the window is 11 x 11.
const RADIUS: usize = 5;
const WINDOW: usize = 2 * RADIUS + 1;
/// Standard deviation of the window's Gaussian weights, in pixels.
const SIGMA: f64 = 1.5;
/// What keeps SSIM's quotients from dividing by nothing: (0.01 x 255)^2 for the means, (0.03 x 255)^2 for the
/// variances.
const C1: f64 = (0.01 * PEAK) * (0.01 * PEAK);
const C2: f64 = (0.03 * PEAK) * (0.03 * PEAK);

/// What SSIM averages over a window, of two pictures: x, y, x^2, y^2, x y.
type Moments = [f64; 5];

/// Structural similarity of the [`luma`] of two pictures, at most 1, which means equal. The window is Gaussian, 11 x
/// 11 with sigma 1.5; the mean is taken over the pixels whose window lies inside (Wang et al., "Image Quality
/// Assessment: From Error Visibility to Structural Similarity", 2004).
///
/// scikit-image gives the same for `structural_similarity(a, b, gaussian_weights=True, sigma=1.5,
/// use_sample_covariance=False, data_range=255)`.
///
/// `None` if a side is under 11 pixels, or if a picture does not have `width` x `height` of them.
pub fn ssim(a: &[u8], b: &[u8], width: usize, height: usize) -> Option<f64> {
    let bytes = width.checked_mul(height)?.checked_mul(3)?;
    if width < WINDOW || height < WINDOW || a.len() != bytes || b.len() != bytes {
        return None;
    }
    let (a, b, weights) = (luma(a), luma(b), gaussian());
    // Rows of horizontal means, the latest eleven: a whole map of them would be 40 bytes a pixel.
    let mut rows = vec![vec![Moments::default(); width - 2 * RADIUS]; WINDOW];
    let mut sum = 0.0;
    for (y, (row_a, row_b)) in a.chunks_exact(width).zip(b.chunks_exact(width)).enumerate() {
        rows.rotate_left(1);
        average_row(row_a, row_b, &weights, &mut rows[WINDOW - 1]);
        if y + 1 >= WINDOW {
            sum += similarity_of_row(&rows, &weights);
        }
    }
    Some(sum / ((width - 2 * RADIUS) * (height - 2 * RADIUS)) as f64)
}

fn gaussian() -> [f64; WINDOW] {
    let weights: [f64; WINDOW] = std::array::from_fn(|i| (-0.5 * ((i as f64 - RADIUS as f64) / SIGMA).powi(2)).exp());
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

fn average_row(a: &[u8], b: &[u8], weights: &[f64; WINDOW], row: &mut [Moments]) {
    for ((a, b), moments) in a.windows(WINDOW).zip(b.windows(WINDOW)).zip(row) {
        let pixels = a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
        *moments = weighted(weights, pixels.map(|(x, y)| [x, y, x * x, y * y, x * y]));
    }
}

/// The sum of SSIM over one row of pixels, whose windows `rows` covers.
fn similarity_of_row(rows: &[Vec<Moments>], weights: &[f64; WINDOW]) -> f64 {
    let columns = 0..rows[0].len();
    columns.map(|x| similarity(weighted(weights, rows.iter().map(|row| row[x])))).sum()
}

fn weighted(weights: &[f64; WINDOW], values: impl Iterator<Item = Moments>) -> Moments {
    let mut means = Moments::default();
    for (weight, value) in weights.iter().zip(values) {
        for (mean, value) in means.iter_mut().zip(value) {
            *mean += weight * value;
        }
    }
    means
}

fn similarity([x, y, xx, yy, xy]: Moments) -> f64 {
    let (var_x, var_y, covariance) = (xx - x * x, yy - y * y, xy - x * y);
    (2.0 * x * y + C1) * (2.0 * covariance + C2) / ((x * x + y * y + C1) * (var_x + var_y + C2))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Bytes of a linear congruential generator (Numerical Recipes' constants).
    fn noise(width: usize, height: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut noise = Vec::new();
        for _ in 0..width * height * 3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.push((state >> 24) as u8);
        }
        noise
    }

    fn gradient(width: usize, height: usize) -> Vec<u8> {
        let mut picture = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let pixel = [x * 255 / (width - 1), y * 255 / (height - 1), (x + y) * 255 / (width + height - 2)];
                picture.extend(pixel.map(|channel| channel as u8));
            }
        }
        picture
    }

    fn disturb(picture: &[u8], by: i32, noise: &[u8]) -> Vec<u8> {
        picture
            .iter()
            .zip(noise)
            .map(|(&p, &n)| (i32::from(p) + i32::from(n) % (2 * by + 1) - by).clamp(0, 255) as u8)
            .collect()
    }

    /// Figures of scikit-image 0.26.0 on the luma of Pillow 13.0.0, and their PSNR over RGB:
    /// `structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)` and
    /// `peak_signal_noise_ratio(a, b, data_range=255)`.
    #[test]
    fn pictures_equal_scikit_image() {
        let (g33, g64, g40, n11) = (gradient(33, 21), gradient(64, 48), gradient(40, 40), noise(11, 11, 5));
        let inverse = g40.iter().map(|channel| 255 - channel).collect();
        let cases = [
            (16, 16, noise(16, 16, 1), noise(16, 16, 2), 0.06052721741188232, 7.578797763156569, 254),
            (33, 21, g33.clone(), disturb(&g33, 8, &noise(33, 21, 3)), 0.9747595553130477, 34.44790344775819, 8),
            (64, 48, g64.clone(), disturb(&g64, 40, &noise(64, 48, 4)), 0.3306397378548016, 20.694729567291503, 40),
            (40, 40, g40, inverse, -0.23089885215311282, 5.347960895557856, 255),
            (11, 11, n11.clone(), disturb(&n11, 3, &noise(11, 11, 6)), 0.9995231598165927, 42.46206408892014, 3),
            (20, 12, vec![10; 720], vec![14; 720], 0.9471078751415275, 36.08960378211985, 4),
        ];
        for (width, height, a, b, similarity, decibels, worst) in cases {
            let found = ssim(&a, &b, width, height).unwrap();
            assert!((found - similarity).abs() < 1e-9, "{width}x{height}: {found} for {similarity}");
            assert!((psnr(&a, &b).unwrap() - decibels).abs() < 1e-9, "{width}x{height}");
            assert_eq!(max_channel_error(&a, &b), Some(worst), "{width}x{height}");
        }
    }

    #[test]
    fn equal_pictures_are_perfect() {
        let picture = gradient(20, 30);
        assert_eq!(psnr(&picture, &picture), Some(f64::INFINITY));
        assert!((ssim(&picture, &picture, 20, 30).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(max_channel_error(&picture, &picture), Some(0));
    }

    #[test]
    fn luma_equals_pillow() {
        let pixels = [255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255, 1, 2, 3, 100, 150, 200, 12, 200, 77, 9];
        assert_eq!(luma(&pixels), [255, 76, 150, 29, 2, 141, 130]);
    }

    #[test]
    fn what_cannot_be_compared_is_none() {
        let picture = vec![0; 11 * 11 * 3];
        assert!(ssim(&picture, &picture, 11, 11).is_some());
        assert_eq!(ssim(&picture[33..], &picture[33..], 11, 10), None);
        assert_eq!(ssim(&picture, &picture[3..], 11, 11), None);
        assert_eq!(ssim(&picture, &picture, usize::MAX, 11), None);
        assert_eq!(psnr(&picture, &[]), None);
        assert_eq!((psnr(&[], &[]), max_channel_error(&[], &[]), max_channel_error(&[1], &[])), (None, None, None));
        assert_eq!((nmse(&[1.0], &[]), mse(&[], &[]), max_error(&[], &[1.0])), (None, None, None));
    }

    #[test]
    fn numbers_by_hand() {
        let (reference, value) = ([3.0, -4.0, 0.0, 0.0], [3.0, -4.0, 0.5, -1.0]);
        assert_eq!(nmse(&reference, &value), Some(1.25 / 25.0));
        assert_eq!(mse(&reference, &value), Some(1.25 / 4.0));
        assert_eq!(max_error(&reference, &value), Some(1.0));
        assert_eq!((nmse(&[0.0], &[0.0]), nmse(&[0.0], &[1.0])), (Some(0.0), Some(f64::INFINITY)));
    }

    #[test]
    fn what_is_not_finite_shows() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(nmse(&[1.0, bad, 2.0], &[1.0, bad, 2.0]).unwrap().is_nan());
            assert!(max_error(&[1.0, bad, 2.0], &[1.0, bad, 3.0]).unwrap().is_nan());
            assert!(!nmse(&[1.0, 2.0], &[1.0, bad]).unwrap().is_finite());
            assert!(!max_error(&[1.0, 2.0, 3.0], &[1.0, bad, 3.0]).unwrap().is_finite());
        }
    }
}
