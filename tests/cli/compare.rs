use pinhole::image::Image;

use super::run::Workplace;

/// Two pictures of 16x16 that differ in one channel of one pixel, and one of 8x16.
fn pictures() -> Workplace {
    let place = Workplace::new();
    let write = |name, width: usize, middle| {
        let mut rgb: Vec<u8> = (0..width * 16 * 3).map(|i| (i * 7) as u8).collect();
        rgb[(8 * width + width / 2) * 3] = middle;
        let mut bytes = Vec::new();
        Image::new(width, 16, rgb).unwrap().write_png(&mut bytes, &[]).unwrap();
        place.write(name, &bytes);
    };
    write("a.png", 16, 40);
    write("b.png", 16, 240);
    write("narrow.png", 8, 0);
    place
}

#[test]
fn different() {
    let place = pictures();
    place.run(&["compare", "a.png", "b.png"]).snapshot("compare");
    place.run(&["compare", "a.png", "b.png", "--json"]).snapshot("compare_json");
    place.run(&["compare", "a.png", "a.png"]).snapshot("compare_identical");
    place.run(&["compare", "narrow.png", "narrow.png"]).snapshot("compare_too_small_for_ssim");
}

#[test]
fn limits() {
    let place = pictures();
    let code = |arguments: &[&str]| place.run(&[&["compare", "a.png", "b.png"], arguments].concat()).code;
    // One error of 200 in 768 channels: 10 log10(255^2 768 / 200^2) = 30.96 dB.
    assert_eq!(code(&["--min-psnr", "30.9", "--min-ssim", "0.5"]), 0);
    assert_eq!(code(&["--min-psnr", "31"]), 1);
    assert_eq!(code(&["--min-ssim", "0.9999"]), 1);
    assert_eq!(place.run(&["compare", "a.png", "a.png", "--min-psnr", "1000"]).code, 0);
    assert_eq!(place.run(&["compare", "narrow.png", "narrow.png", "--min-ssim", "0"]).code, 1);
    place.run(&["compare", "a.png", "b.png", "--min-psnr", "40"]).snapshot("compare_below_limit");
}

#[test]
fn what_cannot_be_compared() {
    let place = pictures();
    place.write("text.png", b"no picture");
    place.run(&["compare", "a.png", "narrow.png"]).snapshot("compare_sizes");
    place.run(&["compare", "a.png", "missing.png"]).snapshot("compare_missing");
    place.run(&["compare", "text.png", "a.png"]).snapshot("compare_no_png");
}
