//! How the names of samplers and schedules are compared.

/// `name` without case and punctuation, without the `k` that stands for k-diffusion, and with one spelling for what has
/// several: `dpmpp` is `dpm++`, and `ancestral` is `a`.
pub(super) fn plain(name: &str) -> String {
    let letters: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let letters = letters.replace("dpmpp", "dpm").replace("ancestral", "a");
    match letters.strip_prefix('k') {
        Some(rest) if !rest.starts_with("arras") => rest.to_owned(),
        _ => letters,
    }
}
