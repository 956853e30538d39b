//! Models and LoRAs from S3: each is fetched once, and lies in a folder of this machine from then on.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use sha2::{Digest, Sha256};
use tracing::info;
use url::Url;

use crate::bucket::{self, Bucket};
use crate::catalogue::Entry;

/// Bytes of one request. It has to arrive within object_store's 30 seconds.
const PART: u64 = 16 << 20;

/// Requests at once.
const AT_ONCE: usize = 4;

/// The folder of those who name none.
pub fn folder() -> PathBuf {
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let caches = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    caches.unwrap_or_else(env::temp_dir).join("pinhole").join("s3")
}

/// Puts a file of this machine into the place of each entry that lies on S3.
///
/// # Errors
/// A text that names the entry.
pub async fn bring(entries: &mut [Entry], cache: &Path) -> Result<(), String> {
    for entry in entries {
        let Some(address) = entry.path.to_str().filter(|path| path.starts_with("s3://")) else { continue };
        let url = bucket::address(address)?;
        entry.path = one(&url, cache).await.map_err(|error| format!("{}: {error}", entry.name))?;
    }
    Ok(())
}

/// The file of the object at `url`.
async fn one(url: &Url, cache: &Path) -> Result<PathBuf, String> {
    let no_file = || format!("{url}: expected an object, a single file");
    let key = ObjectPath::from_url_path(url.path()).map_err(|error| format!("{url}: {error}"))?;
    let name = key.filename().filter(|_| !url.path().ends_with('/')).ok_or_else(no_file)?;
    // What a file is, its ending says.
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    if !ending.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(no_file());
    }
    let bucket = Bucket::open(&url.join(".").map_err(|error| format!("{url}: {error}"))?)?;
    let about = bucket.look_at(name).await?;
    // Another version of the object is another file.
    let mut hash = Sha256::new();
    for part in [url.as_str(), about.e_tag.as_deref().unwrap_or_default(), &about.last_modified.to_rfc3339()] {
        hash.update(part);
        hash.update([0]);
    }
    let digest: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let path = cache.join(format!("{digest}.{ending}"));
    let named = |error: io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(cache).map_err(named)?;
    // Two servers of one folder fetch it once: the second waits, and finds it.
    let part = path.with_extension("part");
    let file = tokio::task::spawn_blocking(move || locked(&part)).await.map_err(|error| error.to_string())?;
    let mut file = file.map_err(named)?;
    if !path.is_file() {
        info!(%url, bytes = about.size, "fetching");
        fill(&mut file, &bucket, name, &about).await?;
        file.sync_all().map_err(named)?;
        fs::rename(path.with_extension("part"), &path).map_err(named)?;
        info!(%url, file = %path.display(), "fetched");
    } else {
        let _ = fs::remove_file(path.with_extension("part"));
    }
    Ok(path)
}

/// The file `path`, which no one else has.
fn locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
    file.lock()?;
    Ok(file)
}

/// Fetches what is missing in `file`. It is written from front to back, so what a killed process left is its beginning.
async fn fill(file: &mut File, bucket: &Bucket, name: &str, about: &ObjectMeta) -> Result<(), String> {
    let there = file.metadata().map_err(|error| error.to_string())?.len();
    let begin = if there > about.size { 0 } else { there };
    file.set_len(begin).and_then(|()| file.seek(SeekFrom::Start(begin))).map_err(|error| error.to_string())?;
    let begins = (begin..about.size).step_by(PART as usize);
    let mut parts =
        stream::iter(begins).map(|at| bucket.read_part(name, about, at..about.size.min(at + PART))).buffered(AT_ONCE);
    while let Some(part) = parts.next().await {
        file.write_all(&part?).map_err(|error| format!("{}: cannot be written: {error}", bucket.address_of(name)))?;
    }
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length != about.size {
        return Err(format!("{}: expected {} bytes, found {length}", bucket.address_of(name), about.size));
    }
    Ok(())
}
