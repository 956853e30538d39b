//! The cases of a golden beside what the reference made of them.

use pinhole::pipeline::Generated;
use pinhole_quant::metrics;

use super::golden::Golden;

/// Draws every case of `golden`, and compares: last latents are at most `most` away from the reference's, and pictures at least `least` dB
/// like them, where the golden has some.
pub(crate) fn equal_the_reference(golden: &Golden, [most, least]: [f64; 2], mut draw: impl FnMut(&str) -> Generated) {
    let mut wrong = Vec::new();
    for (case, described) in golden.at("/cases").as_object().unwrap() {
        let generated = draw(case);
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > most {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
        if described["decoded"].as_bool().unwrap() {
            let psnr = metrics::psnr(&golden.u8(&format!("{case}.picture")), generated.images[0].rgb()).unwrap();
            println!("{case}: psnr {psnr:.1} dB");
            assert!(psnr >= least, "{case}: psnr {psnr}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
