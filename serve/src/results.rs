//! What came of jobs from a queue, in a bucket: `ID/0.png`, `ID/1.png`, ..., and `ID/result.json`, which is written last and once. A job
//! whose `result.json` is there has ended, however often it is delivered.

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use url::Url;
use uuid::Uuid;

use crate::bucket::Bucket;
use crate::drawing::Drawing;
use crate::fault::Fault;
use crate::job::{Outcome, Status};

/// The end of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ending {
    /// The job.
    pub id: Uuid,
    /// `done`, `failed` or `cancelled`.
    pub status: Status,
    /// When it was put into the queue, in seconds since 1970.
    pub created: f64,
    /// When it ended.
    pub ended: f64,
    /// How often it was delivered to a worker; 0 if it was cancelled in the queue.
    pub deliveries: u64,
    /// What was asked for, with the seed and the model that were taken, and without the pictures that were given.
    pub drawing: Option<Drawing>,
    /// Why there are no pictures.
    pub error: Option<Fault>,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// The addresses of its pictures.
    pub images: Vec<String>,
}

/// Where ends are kept.
#[derive(Clone, Debug)]
pub struct Results(Bucket);

impl Results {
    /// Those at `url`, once it is known that they can be reached.
    ///
    /// # Errors
    /// A text that names the address.
    pub async fn open(url: &Url) -> Result<Results, String> {
        let results = Results(Bucket::open(url)?);
        // A key that is never there: what matters is that somebody says so.
        results.find(Uuid::nil()).await?;
        Ok(results)
    }

    /// The end of job `id`, if it has ended.
    ///
    /// # Errors
    /// A text that names the object.
    pub async fn find(&self, id: Uuid) -> Result<Option<Ending>, String> {
        let name = end_of(id);
        let Some(json) = self.0.read(&name).await? else { return Ok(None) };
        let ending = serde_json::from_slice(&json);
        ending.map(Some).map_err(|error| format!("{}: {error}", self.0.address_of(&name)))
    }

    /// The addresses of so many pictures of job `id`.
    pub fn addresses(&self, id: Uuid, pictures: usize) -> Vec<String> {
        (0..pictures).map(|at| self.0.address_of(&picture_of(id, at))).collect()
    }

    /// Stores an end with its pictures. If the job has ended before, that end stays; returns whether this is the one.
    ///
    /// # Errors
    /// A text that names the object that could not be written.
    pub async fn put(&self, ending: &Ending, pictures: &[Bytes]) -> Result<bool, String> {
        for (at, picture) in pictures.iter().enumerate() {
            // One that is there is of another delivery, which drew with the same seed.
            self.0.create(&picture_of(ending.id, at), "image/png", picture.clone()).await?;
        }
        let json = serde_json::to_vec(ending).map_err(|error| error.to_string())?;
        self.0.create(&end_of(ending.id), "application/json", json.into()).await
    }
}

fn end_of(id: Uuid) -> String {
    format!("{id}/result.json")
}

fn picture_of(id: Uuid, at: usize) -> String {
    format!("{id}/{at}.png")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_stays() {
        let folder = tempfile::tempdir().unwrap();
        let url = Url::from_directory_path(folder.path().join("of results")).unwrap();
        let results = Results::open(&url).await.unwrap();
        let id = Uuid::new_v4();
        assert!(results.find(id).await.unwrap().is_none());
        let ending = Ending {
            id,
            status: Status::Done,
            created: 1.0,
            ended: 2.0,
            deliveries: 1,
            drawing: Some(Drawing::default()),
            error: None,
            outcome: Some(Outcome::default()),
            images: results.addresses(id, 2),
        };
        let pictures = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        assert!(results.put(&ending, &pictures).await.unwrap());
        let later = Ending { status: Status::Failed, error: Some(Fault::late()), images: Vec::new(), ..ending };
        assert!(!results.put(&later, &[]).await.unwrap());
        let found = results.find(id).await.unwrap().unwrap();
        assert_eq!((found.status, found.images.len()), (Status::Done, 2));
        let path = Url::parse(&found.images[1]).unwrap().to_file_path().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"two");
    }

    #[test]
    fn addresses_are_of_buckets_or_folders_and_have_no_secrets() {
        use crate::bucket::address;
        for text in ["s3://bucket/prefix", "s3://bucket", "file:///var/lib/results"] {
            assert!(address(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "bucket",
            "s3:///prefix",
            "s3://key:secret@bucket/",
            "file://host/folder",
            "https://a/b",
            "s3://a/b?c=d",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
