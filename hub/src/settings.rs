//! What the environment says: folders, tokens, mirrors. The names are those of Hugging Face's and ModelScope's own tools.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::url::Url;

/// Hugging Face's own address.
pub(crate) const HUGGING_FACE: &str = "https://huggingface.co";
/// ModelScope's own address.
const MODELSCOPE: &str = "https://modelscope.cn";

/// A token file is one line.
const TOKEN_BYTES: u64 = 4096;

/// Where files come from and where they go.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Hugging Face's address, or that of a mirror (`HF_ENDPOINT`).
    pub endpoint: Url,
    /// The folder of Hugging Face's tools (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Who is asking there (`HF_TOKEN`, or the file that `hf auth login` writes).
    pub token: Option<Token>,
    /// ModelScope's address (`MODELSCOPE_ENDPOINT`, or `MODELSCOPE_DOMAIN`).
    pub modelscope: Url,
    /// Who is asking there (`MODELSCOPE_API_TOKEN`).
    pub modelscope_token: Option<Token>,
    /// The folder of what is pinhole's alone (`PINHOLE_HOME`): converted models, and files from elsewhere.
    pub home: PathBuf,
    /// Whether nothing may be asked of a server (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Certificates to trust in the place of those compiled in (`SSL_CERT_FILE`).
    pub certificates: Option<PathBuf>,
    /// How many ranges of a file are fetched at a time.
    pub connections: usize,
    /// The bytes of a range.
    pub range: u64,
    /// The bytes after which it is noted that they are there. A process that is killed loses less than these in each connection.
    pub grain: u64,
    /// How long to wait before the first of several tries; each further one waits twice as long.
    pub pause: Duration,
    /// How long a server may say nothing.
    pub silence: Duration,
}

/// A secret that says who is asking. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Settings {
    /// What the environment of this process says.
    ///
    /// # Errors
    /// [`Error::Name`] for an address or a token that is none, [`Error::Io`] for a token file that cannot be read.
    pub fn from_env() -> Result<Settings> {
        Settings::from(&|name| env::var_os(name))
    }

    /// What `variable` says, which gives a variable's value by its name.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings> {
        // An empty variable is none, as other tools have it.
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| path(name).map(|value| value.to_string_lossy().into_owned());
        let caches = path("XDG_CACHE_HOME")
            .or_else(|| path("HOME").or_else(|| path("USERPROFILE")).map(|home| home.join(".cache")))
            .unwrap_or_else(|| env::temp_dir().join("pinhole-cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token = match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(Token::parse("HF_TOKEN", &token)?),
            None => Token::read(&path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token")))?,
        };
        let modelscope =
            text("MODELSCOPE_ENDPOINT").or_else(|| text("MODELSCOPE_DOMAIN").map(|host| format!("https://{host}")));
        let modelscope_token = text("MODELSCOPE_API_TOKEN").map(|token| Token::parse("MODELSCOPE_API_TOKEN", &token));
        let offline = text("HF_HUB_OFFLINE").is_some_and(|value| is_yes(&value));
        Ok(Settings {
            endpoint: address("HF_ENDPOINT", text("HF_ENDPOINT").as_deref().unwrap_or(HUGGING_FACE))?,
            cache: cache.unwrap_or_else(|| hf_home.join("hub")),
            token,
            modelscope: address("MODELSCOPE_ENDPOINT", modelscope.as_deref().unwrap_or(MODELSCOPE))?,
            modelscope_token: modelscope_token.transpose()?,
            home: path("PINHOLE_HOME").unwrap_or_else(|| caches.join("pinhole")),
            offline,
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
            connections: 8,
            range: 16 << 20,
            grain: 1 << 20,
            pause: Duration::from_millis(500),
            silence: Duration::from_secs(30),
        })
    }
}

/// An address that a variable gives, without a slash at its end.
fn address(name: &str, text: &str) -> Result<Url> {
    let url = Url::parse(text.trim().trim_end_matches('/'));
    url.map_err(|_| Error::name(name, format!("expected an address such as {HUGGING_FACE}, found {text}")))
}

fn is_yes(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.trim().to_ascii_lowercase().as_str())
}

impl Token {
    /// The token in `text`, which `name` gives.
    ///
    /// # Errors
    /// [`Error::Name`], without the text, if it could not stand in a header.
    fn parse(name: &str, text: &str) -> Result<Token> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::name(name, "expected a token: one line of letters, digits and signs"));
        }
        Ok(Token(text.to_owned()))
    }

    /// The token in the file `path`, if there is one.
    fn read(path: &Path) -> Result<Option<Token>> {
        match fs::metadata(path) {
            Ok(found) if found.len() > TOKEN_BYTES => {
                return Err(Error::name(&path.to_string_lossy(), "expected a token, found a large file"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path, error)),
        }
        let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        if text.trim().is_empty() { Ok(None) } else { Token::parse(&path.to_string_lossy(), &text).map(Some) }
    }

    /// The value of the header that carries it.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from(&|name| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).into()))
    }

    #[test]
    fn folders_are_those_of_other_tools() {
        let cache = |variables: &[(&str, &str)]| settings(variables).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/y")]), Path::new("/y/hub"));
        assert_eq!(cache(&[("HF_HOME", "/y"), ("HF_HUB_CACHE", "/z")]), Path::new("/z"));
        assert_eq!(cache(&[("HF_HOME", "/y"), ("HF_HUB_CACHE", "")]), Path::new("/y/hub"));
        assert_eq!(settings(&[("HOME", "/h")]).unwrap().home, Path::new("/h/.cache/pinhole"));
    }

    #[test]
    fn mirrors_have_no_slash_at_the_end() {
        let mirrored =
            settings(&[("HF_ENDPOINT", "https://mirror.example/hf/"), ("MODELSCOPE_DOMAIN", "ms.example")]).unwrap();
        assert_eq!(mirrored.endpoint.to_string(), "https://mirror.example/hf");
        assert_eq!(mirrored.modelscope.to_string(), "https://ms.example");
        assert_eq!(settings(&[]).unwrap().endpoint.to_string(), HUGGING_FACE);
        for wrong in ["mirror.example", "ftp://mirror.example", "https://", "https://user:pass@mirror.example"] {
            assert!(settings(&[("HF_ENDPOINT", wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_read_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token, None);
        fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let from_file = settings(&[("HF_HOME", home)]).unwrap();
        assert_eq!(from_file.token.as_ref().unwrap().header(), "Bearer hf_file");
        assert!(!format!("{from_file:?}").contains("hf_file"));
        let from_variable = settings(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]).unwrap();
        assert_eq!(from_variable.token.unwrap().header(), "Bearer hf_variable");
        let error = settings(&[("HF_TOKEN", "hf_a\r\nHost: x")]).unwrap_err();
        assert!(!error.to_string().contains("hf_a"), "{error}");
    }
}
