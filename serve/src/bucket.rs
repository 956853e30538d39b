//! Where objects lie: a bucket of a service that speaks S3, or a folder that is used like one.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls::crypto::ring;
use axum::body::Bytes;
use futures_util::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientConfigKey, Error, GetOptions, GetRange, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};
use url::Url;

/// How long one request is tried again, if the service has no time or cannot be reached.
const PATIENCE: Duration = Duration::from_secs(30);

/// The service's word for a bucket that is not there. object_store has one error for it and for an object that is not there.
const NO_BUCKET: &str = "NoSuchBucket";

/// Objects below one address.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// What all keys begin with.
    prefix: Path,
    /// The address, to be shown: it has no secrets.
    url: Url,
    /// Whether an object says what it is. Files do not.
    has_types: bool,
}

/// Reads the address of a bucket: `s3://BUCKET/PREFIX` or `file:///FOLDER`.
///
/// # Errors
/// What is expected.
pub fn address(text: &str) -> Result<Url, String> {
    let expected = || "expected s3://BUCKET/PREFIX or file:///FOLDER".to_owned();
    let url = Url::parse(text).map_err(|_| expected())?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(
            "an address without secrets and options: AWS_ACCESS_KEY_ID and others of the environment have them".into(),
        );
    }
    match (url.scheme(), url.host_str().unwrap_or_default()) {
        ("s3", bucket) if !bucket.is_empty() => Ok(url),
        ("file", "") => Ok(url),
        _ => Err(expected()),
    }
}

impl Bucket {
    /// The bucket at `url`. Keys, region and endpoint of S3 come from the environment, by the names that Amazon's tools have; a folder is
    /// made if it is not there. Nothing is asked of the network.
    ///
    /// # Errors
    /// A text that names the address.
    pub fn open(url: &Url) -> Result<Bucket, String> {
        let url = url.clone();
        if url.scheme() == "file" {
            let folder = url.to_file_path().map_err(|()| format!("{url}: this is no path of a folder"))?;
            fs::create_dir_all(&folder).map_err(|error| format!("{url}: {error}"))?;
            let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| format!("{url}: {error}"))?;
            let store = Arc::new(store.with_fsync(true));
            return Ok(Bucket { store, prefix: Path::default(), url, has_types: false });
        }
        // The one library of ciphers that is in this program. A second call changes nothing.
        let _ = ring::default_provider().install_default();
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 10, retry_timeout: PATIENCE };
        let store = AmazonS3Builder::from_env()
            .with_url(url.as_str())
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), "5 seconds")
            .with_retry(retry)
            .build()
            .map_err(|error| format!("{url}: {error}"))?;
        let prefix = Path::from_url_path(url.path()).map_err(|error| format!("{url}: {error}"))?;
        Ok(Bucket { store: Arc::new(store), prefix, url, has_types: true })
    }

    fn key(&self, name: &str) -> Path {
        self.prefix.parts().chain(Path::from(name).parts()).collect()
    }

    fn failed(&self, name: &str, error: &Error) -> String {
        format!("{}: {error}", self.address_of(name))
    }

    /// The address of the object `name`.
    pub fn address_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url.as_str().trim_end_matches('/'))
    }

    /// Writes the object `name`, unless it is there. Returns whether it was not.
    ///
    /// # Errors
    /// A text that names the object.
    pub async fn create(&self, name: &str, content_type: &'static str, bytes: Bytes) -> Result<bool, String> {
        let mut attributes = Attributes::new();
        if self.has_types {
            attributes.insert(Attribute::ContentType, content_type.into());
        }
        let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
        match self.store.put_opts(&self.key(name), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.failed(name, &error)),
        }
    }

    /// The object `name`, if it is there.
    ///
    /// # Errors
    /// A text that names the object.
    pub async fn read(&self, name: &str) -> Result<Option<Bytes>, String> {
        let got = match self.store.get(&self.key(name)).await {
            Ok(got) => got,
            Err(Error::NotFound { source, .. }) if !source.to_string().contains(NO_BUCKET) => return Ok(None),
            Err(error) => return Err(self.failed(name, &error)),
        };
        let bytes = got.bytes().await.map_err(|error| self.failed(name, &error))?;
        Ok(Some(bytes))
    }

    /// What the object `name` is like.
    ///
    /// # Errors
    /// A text that names the object: it is not there, among others.
    pub async fn look_at(&self, name: &str) -> Result<ObjectMeta, String> {
        self.store.head(&self.key(name)).await.map_err(|error| self.failed(name, &error))
    }

    /// All objects, by their names and in the order of these. More than `most` are refused.
    ///
    /// # Errors
    /// A text that names the address.
    pub async fn list(&self, most: usize) -> Result<Vec<(String, ObjectMeta)>, String> {
        let (mut found, mut objects) = (Vec::new(), self.store.list(Some(&self.prefix)));
        while let Some(about) = objects.next().await {
            let about = about.map_err(|error| self.failed("", &error))?;
            let Some(steps) = about.location.prefix_match(&self.prefix) else { continue };
            let steps: Vec<String> = steps.map(|step| step.as_ref().to_owned()).collect();
            found.push((steps.join("/"), about));
            if found.len() > most {
                return Err(format!("{}: expected at most {most} objects, found more", self.url));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(found)
    }

    /// The bytes from `range` of the object `name`, if it still is the one of `about`.
    ///
    /// # Errors
    /// A text that names the object.
    pub async fn read_part(
        &self,
        name: &str,
        about: &ObjectMeta,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, String> {
        let range = Some(GetRange::Bounded(range));
        let options = GetOptions { if_match: about.e_tag.clone(), range, ..GetOptions::default() };
        let got = self.store.get_opts(&self.key(name), options).await.map_err(|error| self.failed(name, &error))?;
        got.bytes().await.map_err(|error| self.failed(name, &error))
    }
}
