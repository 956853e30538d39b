//! Addresses, their origins, and what a redirect leads to.

use std::fmt;

use ureq::http::Uri;

/// The most characters of an address.
const LONGEST: usize = 8192;

/// An address on the web: `http` or `https`, with a host and without a user's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(String);

/// Why a text is no [`Url`].
#[derive(Debug)]
pub struct NoUrl;

impl Url {
    /// Reads an address.
    ///
    /// # Errors
    /// [`NoUrl`].
    pub fn parse(text: &str) -> Result<Url, NoUrl> {
        if text.len() > LONGEST {
            return Err(NoUrl);
        }
        // What follows a `#` is for browsers alone.
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().map_err(|_| NoUrl)?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().ok_or(NoUrl)?;
        // A name before the host makes one host look like another.
        if !is_web || authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(NoUrl);
        }
        Ok(Url(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn uri(&self) -> Uri {
        // `parse` has read it once.
        self.0.parse().unwrap_or_default()
    }

    /// Whether what comes can neither be read nor changed on the way.
    pub(crate) fn is_secret(&self) -> bool {
        self.uri().scheme_str() == Some("https")
    }

    /// The host, in small letters.
    pub(crate) fn host(&self) -> String {
        self.uri().host().unwrap_or_default().to_ascii_lowercase()
    }

    /// Whether a secret for `self` may be told to `other`: scheme, host and port are the same.
    pub(crate) fn is_same_origin(&self, other: &Url) -> bool {
        let origin = |url: &Url| (url.is_secret(), url.host(), url.port());
        origin(self) == origin(other)
    }

    fn port(&self) -> u16 {
        self.uri().port_u16().unwrap_or(if self.is_secret() { 443 } else { 80 })
    }

    /// The path, with its slash and without what follows a `?`.
    pub(crate) fn path(&self) -> String {
        self.uri().path().to_owned()
    }

    /// What stands before a `?`: the rest may be a signature.
    pub(crate) fn without_query(&self) -> &str {
        self.0.split('?').next().unwrap_or_default()
    }

    /// This address with `path` behind it, which begins with a slash.
    pub(crate) fn with(&self, path: &str) -> Url {
        Url(format!("{}{path}", self.0))
    }

    /// Where a redirect from here to `location` leads.
    ///
    /// # Errors
    /// [`NoUrl`].
    pub(crate) fn join(&self, location: &str) -> Result<Url, NoUrl> {
        if location.contains("://") && !location.starts_with('/') {
            return Url::parse(location);
        }
        let uri = self.uri();
        let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority().ok_or(NoUrl)?);
        if let Some(elsewhere) = location.strip_prefix("//") {
            return Url::parse(&format!("{scheme}://{elsewhere}"));
        }
        if location.starts_with('/') {
            return Url::parse(&format!("{scheme}://{authority}{location}"));
        }
        let folder = uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        Url::parse(&format!("{scheme}://{authority}{folder}/{location}"))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `text` as a part of a path: everything except letters, digits and `-._~` as `%XX`; slashes too, unless they are `kept`.
pub(crate) fn encoded(text: &str, kept: &[char]) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(&c) {
            encoded.push(c);
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

/// The reverse of [`encoded`]; `None` if that is no text.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_browsers_go() {
        let base = Url::parse("https://hub.example:8443/a/b?x=1").unwrap();
        let join = |location: &str| base.join(location).map(|url| url.to_string());
        assert_eq!(join("https://cdn.example/f?sig=1").unwrap(), "https://cdn.example/f?sig=1");
        assert_eq!(join("//cdn.example/f").unwrap(), "https://cdn.example/f");
        assert_eq!(join("/c?next=https://x.example/").unwrap(), "https://hub.example:8443/c?next=https://x.example/");
        assert_eq!(join("c").unwrap(), "https://hub.example:8443/a/c");
        for wrong in
            ["file:///etc/passwd", "https://a@b.example/", "https://", "gopher://x.example/", "https://x.example/\u{0}"]
        {
            assert!(join(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn origins_are_told_apart() {
        let url = |text: &str| Url::parse(text).unwrap();
        let hub = url("https://hub.example/a");
        for same in ["https://hub.example/b", "https://HUB.example:443/"] {
            assert!(hub.is_same_origin(&url(same)), "{same}");
        }
        for other in [
            "http://hub.example/a",
            "https://hub.example:444/",
            "https://hub.example.evil.example/",
            "https://cdn.hub.example/",
        ] {
            assert!(!hub.is_same_origin(&url(other)), "{other}");
        }
    }

    #[test]
    fn what_is_encoded_comes_back() {
        for text in ["plain.txt", "a b/ü?#%", "../x"] {
            assert_eq!(decoded(&encoded(text, &[])).as_deref(), Some(text));
        }
        assert_eq!(encoded("a/b c", &['/']), "a/b%20c");
        assert_eq!(encoded("refs/pr/1", &[]), "refs%2Fpr%2F1");
        for wrong in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }
}
