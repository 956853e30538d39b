//! Texts as the pipelines of video models clean them, before a tokenizer sees them.
//!
//! These pipelines call `ftfy.fix_text`, then `html.unescape` twice, then put single spaces for all space. Of ftfy's repairs, those are
//! done here that change what people write: curled quotes, ligatures, wide forms of Latin letters and signs, control characters, escapes
//! of terminals. Left out are the repair of texts that were decoded wrongly, the composition of letters and accents that were written
//! apart, and half-width forms of Japanese and Korean. Of HTML's names for characters, those of ISO 8859-1 and of punctuation are known.

/// What names stand for: those of HTML 3.2 from U+00A0 on, in their order.
const LATIN_1: &str = "nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr deg plusmn sup2 sup3 acute \
                       micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest Agrave Aacute Acirc Atilde Auml Aring \
                       AElig Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml \
                       times Oslash Ugrave Uacute Ucirc Uuml Yacute THORN szlig agrave aacute acirc atilde auml aring aelig ccedil \
                       egrave eacute ecirc euml igrave iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash \
                       ugrave uacute ucirc uuml yacute thorn yuml";

/// The same of others.
const NAMED: [(&str, char); 27] = [
    ("amp", '&'),
    ("lt", '<'),
    ("gt", '>'),
    ("quot", '"'),
    ("AMP", '&'),
    ("LT", '<'),
    ("GT", '>'),
    ("QUOT", '"'),
    ("apos", '\''),
    ("ndash", '\u{2013}'),
    ("mdash", '\u{2014}'),
    ("lsquo", '\u{2018}'),
    ("rsquo", '\u{2019}'),
    ("sbquo", '\u{201A}'),
    ("ldquo", '\u{201C}'),
    ("rdquo", '\u{201D}'),
    ("bdquo", '\u{201E}'),
    ("bull", '\u{2022}'),
    ("hellip", '\u{2026}'),
    ("prime", '\u{2032}'),
    ("trade", '\u{2122}'),
    ("euro", '\u{20AC}'),
    ("larr", '\u{2190}'),
    ("rarr", '\u{2192}'),
    ("minus", '\u{2212}'),
    ("infin", '\u{221E}'),
    ("hearts", '\u{2665}'),
];

/// Those that HTML knows without a semicolon, beside those of ISO 8859-1.
const WITHOUT_SEMICOLON: [&str; 8] = ["amp", "lt", "gt", "quot", "AMP", "LT", "GT", "QUOT"];

/// `text`, cleaned.
pub fn cleaned(text: &str) -> String {
    let unescaped = unescaped(&unescaped(&repaired(text)));
    unescaped.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What is done of ftfy's `fix_text`.
fn repaired(text: &str) -> String {
    let unescaped = if text.contains('<') { text.to_owned() } else { unescaped(text) };
    let mut repaired = String::with_capacity(unescaped.len());
    let mut characters = unescaped.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // A terminal's escape: `ESC [ 31 m`.
            '\u{1B}' if characters.peek() == Some(&'[') => {
                characters.next();
                while characters.next_if(|c| c.is_ascii_digit() || *c == ';').is_some() {}
                characters.next_if(char::is_ascii_alphabetic);
            }
            '\u{2018}'..='\u{201B}' => repaired.push('\''),
            '\u{201C}'..='\u{201F}' => repaired.push('"'),
            '\u{FB00}'..='\u{FB06}' => repaired.push_str(LIGATURES[character as usize - 0xFB00]),
            '\u{3000}' => repaired.push(' '),
            // Wide forms stand in ASCII's order.
            '\u{FF01}'..='\u{FF5E}' => repaired.extend(char::from_u32(character as u32 - 0xFEE0)),
            '\u{FEFF}' | '\u{7F}' | '\u{FFF9}'..='\u{FFFB}' | '\u{206A}'..='\u{206F}' => {}
            control if control < ' ' && !control.is_whitespace() => {}
            other => repaired.push(other),
        }
    }
    repaired
}

/// The ligatures from U+FB00 on.
const LIGATURES: [&str; 7] = ["ff", "fi", "fl", "ffi", "ffl", "\u{17F}t", "st"];

/// `text` with characters for what stands for them: `&amp;`, `&#38;`, `&#x26;`.
fn unescaped(text: &str) -> String {
    let (mut all, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('&') {
        all.push_str(&rest[..at]);
        rest = &rest[at..];
        match reference(&rest[1..]) {
            Some((character, length)) => {
                all.extend(character);
                rest = &rest[1 + length..];
            }
            None => {
                all.push('&');
                rest = &rest[1..];
            }
        }
    }
    all.push_str(rest);
    all
}

/// The character that stands behind an ampersand, if there is one, and how many bytes name it.
fn reference(text: &str) -> Option<(Option<char>, usize)> {
    if let Some(number) = text.strip_prefix('#') {
        return numbered(number).map(|(character, length)| (character, 1 + length));
    }
    let letters = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    if text[letters..].starts_with(';')
        && let Some(character) = named(&text[..letters])
    {
        return Some((Some(character), letters + 1));
    }
    // The longest that is known without one, as in `&ampere`.
    (2..=letters).rev().find_map(|length| {
        let name = &text[..length];
        let is_old = WITHOUT_SEMICOLON.contains(&name) || LATIN_1.split(' ').any(|known| known == name);
        named(name).filter(|_| is_old).map(|character| (Some(character), length))
    })
}

/// The character of a number, in decimal or behind an `x`. What is no character is left out or replaced, as HTML has it.
fn numbered(text: &str) -> Option<(Option<char>, usize)> {
    let (digits, radix, before) = match text.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16, 1),
        None => (text, 10, 0),
    };
    let length = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if length == 0 {
        return None;
    }
    let number = u32::from_str_radix(&digits[..length], radix).unwrap_or(u32::MAX);
    let character = match number {
        0 => Some('\u{FFFD}'),
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF => None,
        number if number & 0xFFFE == 0xFFFE && number <= 0x10_FFFF => None,
        number => Some(char::from_u32(number).unwrap_or('\u{FFFD}')),
    };
    let semicolon = usize::from(digits[length..].starts_with(';'));
    Some((character, before + length + semicolon))
}

/// The character called `name`.
fn named(name: &str) -> Option<char> {
    let other = NAMED.iter().find(|(known, _)| *known == name).map(|(_, character)| *character);
    let in_latin = LATIN_1.split(' ').position(|known| known == name);
    other.or(in_latin.and_then(|at| char::from_u32(0xA0 + at as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cleaned() {
        for (text, expected) in [
            ("  a\tred\r\n  star \u{A0} ", "a red star"),
            ("&lt;b&gt; &amp;amp; &amp;quot;x", "<b> & \"x"),
            ("&#65;&#x42; &copy &copy; &ampere &unknown; & &#xZ;", "AB \u{A9} \u{A9} &ere &unknown; & &#xZ;"),
            ("\u{201C}quoted\u{201D}, it\u{2019}s \u{FB01}ne", "\"quoted\", it's fine"),
            ("过曝\u{FF0C}静态\u{3000}\u{FF21}", "过曝,静态 A"),
            ("\u{1B}[31mred\u{1B}[0m\u{0}\u{FEFF}", "red"),
            ("caf&eacute; &hellip; &frac12;", "caf\u{E9} \u{2026} \u{BD}"),
            ("", ""),
        ] {
            assert_eq!(cleaned(text), expected, "{text:?}");
        }
        assert_eq!(unescaped("&#0;&#55296;&#x110000;&#1;"), "\u{FFFD}\u{FFFD}\u{FFFD}");
    }
}
