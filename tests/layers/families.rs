//! A family of models is named in its own files and where families are listed, and nowhere else: not in a comment either. Tests
//! may name any.

use super::tokens::Code;

/// Families, and what their versions are called.
const FAMILIES: &[&str] = &[
    "flux", "schnell", "kontext", "sd1", "sd15", "sd2", "sd21", "sd3", "sd35", "sdxl", "wan", "qwen", "zimage",
    "lumina", "hunyuan", "ltx", "chroma",
];

/// Where code is looked through.
pub(crate) const FOLDERS: &[&str] = &["src", "capi/src", "hub/src", "quant/src"];

/// Where a family may be named: what a path begins with, and why.
const PLACES: &[(&str, &str)] = &[
    ("src/models/flux/", "the family's own"),
    ("src/models/unet/", "the family's own"),
    ("src/models/z_image/", "the family's own"),
    ("src/models/qwen_image/", "the family's own"),
    ("src/models/qwen_vl/", "the tower of the models that read for it"),
    ("src/models/autoencoder_wan/", "the family's own"),
    ("src/models/wan/", "the family's own"),
    ("src/models/language_model", "the language models, which are called as text encoders' families are"),
    ("src/models/mod.rs", "the list of models"),
    ("src/bind/alias", "the table of names in files, by family"),
    ("src/bind/lora/keys.rs", "the table of spellings in LoRAs, by who wrote them and for what"),
    ("src/bind/lora/seems.rs", "the table of what a LoRA seems to be for"),
    ("src/source/networks", "the loaders, by family"),
    ("src/source/llama.rs", "the table of architectures in llama.cpp's files"),
    ("src/text/byte_level.rs", "the table of rules by vocabulary"),
    ("src/source/strangers.rs", "the table of networks that are described and not run"),
    ("src/synthetic/flux", "the family's own"),
    ("src/synthetic/sd.rs", "the family's own"),
    ("src/synthetic/z_image.rs", "the family's own"),
    ("src/synthetic/qwen_image.rs", "the family's own"),
    ("src/synthetic/wan.rs", "the family's own"),
    ("src/synthetic/mod.rs", "the list of models that can be made"),
    ("src/pipeline/flux", "the family's own"),
    ("src/pipeline/sd.rs", "the family's own"),
    ("src/pipeline/sdxl.rs", "the family's own"),
    ("src/pipeline/z_image.rs", "the family's own"),
    ("src/pipeline/qwen_image", "the family's own"),
    ("src/pipeline/wan", "the family's own"),
    ("src/pipeline/registry.rs", "the list of families"),
    ("src/pipeline/mod.rs", "the list of the families' files"),
    ("src/sample/reference.rs", "numbers that only tests use"),
    ("src/sample/sampler.rs", "the table of diffusers' classes: one is named after a family"),
    ("quant/src/recipe.rs", "the table of mixes, by architecture"),
];

/// Where a family may be named in help: in texts, and in comments that begin with `///`, from which clap makes help. People
/// look for the model that they have, so help and its examples say which models an option is for.
const HELP: &str = "src/cli/";

/// Files that still name a family and should not. The list only ever becomes shorter.
pub(crate) const NOT_YET: &[&str] = &[];

/// What is wrong with `files`, given as name and text.
pub(crate) fn misplaced<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>, not_yet: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut waiting = not_yet.to_vec();
    for (file, text) in files {
        if PLACES.iter().any(|(place, _)| file.starts_with(place)) {
            continue;
        }
        let found = named(text, file.starts_with(HELP));
        if not_yet.contains(&file) {
            if !found.is_empty() {
                waiting.retain(|other| *other != file);
            }
            continue;
        }
        if let Some((line, name)) = found.first() {
            let lines: Vec<String> = found.iter().skip(1).map(|(line, _)| line.to_string()).collect();
            let others =
                if lines.is_empty() { String::new() } else { format!(" (and a family in lines {})", lines.join(", ")) };
            wrong.push(format!(
                "{file}:{line}: names the family `{name}`{others}. Say what the code needs instead (a size, a slot, a kind of \
                 network), or move it to a file of the family"
            ));
        }
    }
    for file in waiting {
        wrong.push(format!(
            "tests/layers/families.rs: {file} names no family any more, or is gone: remove it from NOT_YET"
        ));
    }
    wrong
}

/// The lines of a file, outside its tests and, if it `helps`, outside its help, that name a family; each with the first name
/// in it.
fn named(text: &str, helps: bool) -> Vec<(usize, String)> {
    let code = Code::read(text);
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        if code.test_lines.iter().any(|lines| lines.contains(&number)) {
            continue;
        }
        let comment = line.trim_start().starts_with("//") && !line.trim_start().starts_with("///");
        let looked_at = if helps && !comment { code.names(number) } else { line.to_owned() };
        for word in words(&looked_at) {
            // With its version, or without: Wan2, Qwen3.
            let stem = word.trim_end_matches(|c: char| c.is_ascii_digit());
            if FAMILIES.contains(&word.as_str()) || FAMILIES.contains(&stem) {
                found.push((number, word));
                // One in a line is enough.
                break;
            }
        }
    }
    found
}

/// The words of a line in lower case: `FluxModel` is flux and model, `SDXL_SIZE` sdxl and size, `SD1.5` sd1 and 5.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let chars: Vec<char> = line.chars().collect();
    for (i, &c) in chars.iter().enumerate() {
        let before = if i == 0 { ' ' } else { chars[i - 1] };
        let after = chars.get(i + 1).copied().unwrap_or(' ');
        let begins = c.is_uppercase() && (!before.is_uppercase() || after.is_lowercase());
        if !word.is_empty() && (begins || !c.is_alphanumeric()) {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_where_names_do() {
        assert_eq!(
            words("FluxModel flux_dev SDXLModel SD1.5 (Qwen2)"),
            ["flux", "model", "flux", "dev", "sdxl", "model", "sd1", "5", "qwen2"]
        );
        let found = |line: &str| named(line, false).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(
            found("let x: FluxModel;\nx // as in Wan2.1\nSDXL and FLUX.1-schnell\nSD1.5"),
            ["flux", "wan2", "sdxl", "sd1"]
        );
        assert_eq!(found("influx of what is wanted: swan, qwerty, WANTED, fluxes"), [] as [&str; 0]);
    }

    #[test]
    fn a_family_outside_its_files_is_wrong() {
        let plan = "//! Plans.\n\n/// As FLUX does.\nfn f() {}\n#[cfg(test)]\nmod tests { const FLUX: u8 = 1; }\n";
        let own = ("src/models/flux/mod.rs", "pub struct Flux;");
        let wrong = misplaced([("src/plan/mod.rs", plan), own], &[]);
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("src/plan/mod.rs:3: names the family `flux`"), "{wrong:?}");
        assert!(misplaced([("src/plan/mod.rs", plan), own], &["src/plan/mod.rs"]).is_empty());
    }

    #[test]
    fn help_may_name_a_family() {
        let help = "/// For FLUX.\nguidance: f32,\nconst EXAMPLES: &str = \"\n  -m FLUX.1-dev\";\n";
        assert_eq!(misplaced([("src/cli/request.rs", help)], &[]), [] as [&str; 0]);
        assert_eq!(misplaced([("src/plan/mod.rs", help)], &[]).len(), 1);
        for code in ["// As FLUX does.\n", "//! For FLUX.\n", "let x: Flux = 1;\n"] {
            assert_eq!(misplaced([("src/cli/request.rs", code)], &[]).len(), 1, "{code}");
        }
    }

    #[test]
    fn the_list_of_files_that_wait_becomes_shorter() {
        let files = [("src/a.rs", "// clean"), ("src/b.rs", "// flux")];
        let wrong = misplaced(files, &["src/a.rs", "src/b.rs", "src/gone.rs"]);
        assert_eq!(wrong.len(), 2);
        assert!(
            wrong[0].contains("src/a.rs names no family any more") && wrong[1].contains("src/gone.rs"),
            "{wrong:?}"
        );
    }
}
