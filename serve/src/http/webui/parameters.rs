//! Texts of the web UI: LoRAs in prompts, and how a picture was made.

use std::io::Cursor;

use serde_json::{Map, Value};

use crate::drawing::LoraUse;

/// Takes `<lora:NAME:STRENGTH>` out of a prompt.
pub(super) fn without_loras(prompt: &str) -> (String, Vec<LoraUse>) {
    let (mut text, mut loras, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some(start) = rest.find("<lora:") {
        let Some(length) = rest[start..].find('>') else { break };
        let inside = &rest[start + "<lora:".len()..start + length];
        let (name, strength) = inside.split_once(':').unwrap_or((inside, "1"));
        // A second strength is that of the text encoder, which has the same here.
        let strength = strength.split(':').next().and_then(|number| number.trim().parse().ok());
        text.push_str(&rest[..start]);
        match strength {
            Some(strength) => loras.push(LoraUse { name: name.trim().to_owned(), strength }),
            None => text.push_str(&rest[start..=start + length]),
        }
        rest = &rest[start + length + 1..];
    }
    text.push_str(rest);
    (text.trim().to_owned(), loras)
}

/// The text that the web UI keeps in a PNG, if it is there.
pub(super) fn of_png(bytes: &[u8]) -> Option<String> {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: 8 << 20 });
    decoder.set_ignore_text_chunk(false);
    let reader = decoder.read_info().ok()?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == pinhole::image::PARAMETERS);
    if let Some(chunk) = plain {
        return Some(chunk.text.clone());
    }
    let unicode = info.utf8_text.iter().find(|chunk| chunk.keyword == pinhole::image::PARAMETERS)?;
    unicode.get_text().ok()
}

/// The members of such a text: the prompts, and what the last line says.
pub(super) fn members(text: &str) -> Map<String, Value> {
    let mut lines: Vec<&str> = text.trim().lines().collect();
    let last = lines.pop_if(|line| line.contains("Steps: ")).unwrap_or_default();
    let negative_at = lines.iter().position(|line| line.starts_with("Negative prompt:")).unwrap_or(lines.len());
    let negative = lines.split_off(negative_at).join("\n");
    let mut all = Map::new();
    all.insert("Prompt".into(), lines.join("\n").trim().into());
    all.insert("Negative prompt".into(), negative.trim_start_matches("Negative prompt:").trim().into());
    for (name, value) in pairs(last) {
        all.insert(name, value.into());
    }
    all
}

/// `Name: value, Name: "quoted, value"`.
fn pairs(line: &str) -> Vec<(String, String)> {
    let (mut found, mut rest) = (Vec::new(), line);
    while let Some((name, after)) = rest.split_once(": ") {
        let mut quoted = serde_json::Deserializer::from_str(after).into_iter::<String>();
        let (value, used) = match quoted.next() {
            Some(Ok(value)) if after.starts_with('"') => (value, quoted.byte_offset()),
            _ => {
                let end = after.find(", ").unwrap_or(after.len());
                (after[..end].to_owned(), end)
            }
        };
        found.push((name.trim().to_owned(), value));
        rest = after[used..].trim_start_matches(", ");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loras_are_taken_out_of_prompts() {
        let lora = |name: &str, strength| LoraUse { name: name.into(), strength };
        let cases = [
            ("a star", "a star", vec![]),
            ("a star <lora:ink:0.5>", "a star", vec![lora("ink", 0.5)]),
            ("<lora:a> x <lora:b:1:0.2>", "x", vec![lora("a", 1.0), lora("b", 1.0)]),
            ("a <lora:b:much> c", "a <lora:b:much> c", vec![]),
            ("open <lora:b", "open <lora:b", vec![]),
        ];
        for (prompt, text, loras) in cases {
            assert_eq!(without_loras(prompt), (text.to_owned(), loras), "{prompt}");
        }
    }

    #[test]
    fn the_text_of_a_picture_is_read_back() {
        let settings = [("Steps", "20"), ("Sampler", "Euler"), ("Size", "128x96"), ("Model", "a, b: \"c\"")];
        let text = pinhole::image::parameters_text("a star\nor two", Some("blur"), &settings);
        let members = members(&text);
        let expected = [
            ("Prompt", "a star\nor two"),
            ("Negative prompt", "blur"),
            ("Steps", "20"),
            ("Sampler", "Euler"),
            ("Size", "128x96"),
            ("Model", "a, b: \"c\""),
        ];
        for (name, value) in expected {
            assert_eq!(members.get(name).and_then(Value::as_str), Some(value), "{name}");
        }
        assert_eq!(members.len(), expected.len());
    }
}
