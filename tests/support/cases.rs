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

/// The same of films, of those cases that `model` draws: they have as many frames as they should.
pub(crate) fn films_equal_the_reference(
    golden: &Golden,
    model: &str,
    [most, least]: [f64; 2],
    mut draw: impl FnMut(&str) -> Generated,
) {
    let mut wrong = Vec::new();
    for (case, described) in golden.at("/cases").as_object().unwrap() {
        if described["model"].as_str() != Some(model) {
            continue;
        }
        let generated = draw(case);
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > most {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
        let frames = described["frames"].as_u64().unwrap() as usize;
        assert_eq!(generated.images.len(), frames * generated.settings.batch);
        if described["decoded"].as_bool().unwrap() {
            let found: Vec<u8> = generated.images.iter().flat_map(|image| image.rgb()).copied().collect();
            let psnr = metrics::psnr(&golden.u8(&format!("{case}.frames")), &found).unwrap();
            println!("{case}: psnr {psnr:.1} dB");
            assert!(psnr >= least, "{case}: psnr {psnr}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
