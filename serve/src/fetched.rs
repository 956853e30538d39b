//! Models and LoRAs from S3: each is fetched once, and lies in a folder of this machine from then on. An address that ends in a slash is that of
//! a folder, such as a diffusers directory.

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

/// Objects of a folder at most: a model has some dozens.
const MOST_OBJECTS: usize = 1000;

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
        let fetched = if url.path().ends_with('/') { folder_at(&url, cache).await } else { one(&url, cache).await };
        entry.path = fetched.map_err(|error| format!("{}: {error}", entry.name))?;
    }
    Ok(())
}

/// A folder with all objects below `url`, which ends in a slash.
async fn folder_at(url: &Url, cache: &Path) -> Result<PathBuf, String> {
    let bucket = Bucket::open(url)?;
    let objects = files_of(bucket.list(MOST_OBJECTS).await?);
    if objects.is_empty() {
        return Err(format!("{url}: expected a folder of objects, found none"));
    }
    for (name, _) in &objects {
        // Of any other, the name of a file would not be that of the object.
        if ObjectPath::from(name.as_str()).as_ref() != name {
            return Err(format!("{}: its name is none of a file", bucket.address_of(name)));
        }
    }
    // Other versions of the objects are another folder.
    let about = objects.iter().flat_map(|(name, about)| [name.clone(), version(about), about.size.to_string()]);
    let whole = cache.join(digest([url.to_string()].into_iter().chain(about)));
    let (part, lock) = (whole.with_extension("part"), whole.with_extension("lock"));
    let named = |error: io::Error| format!("{}: {error}", whole.display());
    fs::create_dir_all(cache).map_err(named)?;
    let path = lock.clone();
    let held = tokio::task::spawn_blocking(move || locked(&path)).await.map_err(|error| error.to_string())?;
    let _held = held.map_err(named)?;
    if !whole.is_dir() {
        let bytes: u64 = objects.iter().map(|(_, about)| about.size).sum();
        info!(%url, objects = objects.len(), bytes, "fetching");
        for (name, about) in &objects {
            let path = part.join(name);
            let named = |error: io::Error| format!("{}: {error}", path.display());
            fs::create_dir_all(path.parent().unwrap_or(&part)).map_err(named)?;
            let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(&path).map_err(named)?;
            fill(&mut file, &bucket, name, about).await?;
            file.sync_all().map_err(named)?;
        }
        fs::rename(&part, &whole).map_err(named)?;
        info!(%url, folder = %whole.display(), "fetched");
    }
    let _ = fs::remove_file(lock);
    Ok(whole)
}

/// Those of `objects` that are files of a model: none that stand for folders, and nothing hidden.
fn files_of(objects: Vec<(String, ObjectMeta)>) -> Vec<(String, ObjectMeta)> {
    let names: Vec<String> = objects.iter().map(|(name, _)| name.clone()).collect();
    let mut files = objects;
    files.retain(|(name, about)| {
        let is_folder = about.size == 0 && names.iter().any(|other| other.starts_with(&format!("{name}/")));
        let is_hidden = name.split('/').any(|step| step.starts_with('.'));
        !name.is_empty() && !is_folder && !is_hidden
    });
    files
}

/// What tells a version of an object from others.
fn version(about: &ObjectMeta) -> String {
    format!("{} {}", about.e_tag.as_deref().unwrap_or_default(), about.last_modified.to_rfc3339())
}

/// A name of a file that no other `parts` have.
fn digest(parts: impl IntoIterator<Item = String>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The file of the object at `url`.
async fn one(url: &Url, cache: &Path) -> Result<PathBuf, String> {
    let no_file = || format!("{url}: expected an object, a single file, or a folder with `/` behind it");
    let key = ObjectPath::from_url_path(url.path()).map_err(|error| format!("{url}: {error}"))?;
    let name = key.filename().ok_or_else(no_file)?;
    // What a file is, its ending says.
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    if !ending.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(no_file());
    }
    let bucket = Bucket::open(&url.join(".").map_err(|error| format!("{url}: {error}"))?)?;
    let about = bucket.look_at(name).await?;
    // Another version of the object is another file.
    let path = cache.join(format!("{}.{ending}", digest([url.to_string(), version(&about)])));
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
