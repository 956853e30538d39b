//! Who may ask: API keys from a file, and what a server without keys asks of requests.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::fault::Fault;

/// Shorter keys can be guessed.
const LEAST_KEY: usize = 16;

/// The keys of a server. Only their hashes are kept.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    name: Arc<str>,
    hash: [u8; 32],
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose jobs these are: the name of the key; empty on a server without keys.
    pub owner: Arc<str>,
    /// In whose line they stand: the owner's, or that of the address.
    pub line: Arc<str>,
}

impl Keys {
    /// Reads the lines of a file: `NAME:KEY` or `KEY`; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// A text that names the line.
    pub fn read(text: &str) -> Result<Keys, String> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, key) = match line.split_once(':') {
                Some((name, key)) => (name.trim().to_owned(), key.trim()),
                None => (format!("key-{number}"), line),
            };
            if name.is_empty() {
                return Err(format!("line {number}: a key without a name before its colon"));
            }
            if key.len() < LEAST_KEY {
                return Err(format!(
                    "line {number}: expected a key of at least {LEAST_KEY} bytes, found {}",
                    key.len()
                ));
            }
            if keys.iter().any(|other| *other.name == *name) {
                return Err(format!("line {number}: two keys are called `{name}`"));
            }
            keys.push(Key { name: name.into(), hash: Sha256::digest(key.as_bytes()).into() });
        }
        match keys.is_empty() {
            true => Err("no key in it".to_owned()),
            false => Ok(Keys(keys)),
        }
    }

    /// Whether anybody may ask.
    pub fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Who asks with these headers, from `address`.
    ///
    /// # Errors
    /// 401 without a key that is known.
    pub fn caller(&self, headers: &HeaderMap, address: IpAddr) -> Result<Caller, Fault> {
        if self.are_none() {
            return Ok(Caller { owner: Arc::default(), line: address.to_string().into() });
        }
        let refused = || {
            let fault = Fault::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "no API key, or one that is not known");
            fault.with_hint("send it as `Authorization: Bearer KEY`, as `X-Api-Key: KEY`, or as a basic password")
        };
        let given = given(headers).ok_or_else(refused)?;
        // Of hashes, a comparison that takes longer or shorter tells nothing of the keys.
        let hash: [u8; 32] = Sha256::digest(given.as_bytes()).into();
        let key = self.0.iter().find(|key| key.hash == hash).ok_or_else(refused)?;
        Ok(Caller { owner: Arc::clone(&key.name), line: Arc::clone(&key.name) })
    }
}

/// The key in the headers.
fn given(headers: &HeaderMap) -> Option<String> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok().map(str::to_owned);
    }
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(base64::decode(value.trim()).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Whether `host`, a header, names a server without keys: by an address, as `localhost`, or by one of `names`. A page on the network that
/// has its own name resolved to this machine would have another (DNS rebinding).
pub fn is_own_host(host: &str, names: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn keys_are_read_from_lines() {
        let keys = Keys::read("# mine\n\nanna: 0123456789abcdef\nfedcba9876543210\n").unwrap();
        let owner = |headers: &HeaderMap| keys.caller(headers, ADDRESS).map(|caller| caller.owner.to_string());
        assert_eq!(owner(&headers("authorization", "Bearer 0123456789abcdef")).unwrap(), "anna");
        assert_eq!(owner(&headers("x-api-key", "fedcba9876543210")).unwrap(), "key-4");
        let basic = format!("Basic {}", base64::encode("user:0123456789abcdef"));
        assert_eq!(owner(&headers("authorization", &basic)).unwrap(), "anna");
        for wrong in ["Bearer 0123456789abcdeg", "Bearer", "Basic !", "0123456789abcdef"] {
            assert_eq!(owner(&headers("authorization", wrong)).unwrap_err().status, 401, "{wrong}");
        }
        assert!(owner(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_file_without_proper_keys_is_refused() {
        for text in ["", "# none", "a:short", ":0123456789abcdef", "a:0123456789abcdef\na:fedcba9876543210"] {
            assert!(Keys::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn without_keys_only_own_names_are_answered() {
        let names = ["box.lan".to_owned()];
        for host in ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860", "192.168.1.5", "box.lan:80"] {
            assert!(is_own_host(host, &names), "{host}");
        }
        for host in ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost.evil"] {
            assert!(!is_own_host(host, &names), "{host}");
        }
    }
}
