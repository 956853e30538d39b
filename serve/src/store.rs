//! Jobs on disk, so that none that was accepted is lost: an embedded database in one file.
//!
//! A job is written before its client hears that it is accepted, and its end is written with its pictures in one transaction. What is
//! found without an end after a restart is begun again, with the same seed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::http::StatusCode;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::drawing::Drawing;
use crate::fault::Fault;
use crate::job::{Outcome, Status};

/// Jobs by id, as JSON.
const JOBS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("jobs");
/// PNGs by job and number.
const PICTURES: TableDefinition<'_, (u128, u32), &[u8]> = TableDefinition::new("pictures");

/// The file in the folder of `--state`.
const FILE: &str = "jobs.redb";

/// The database may keep so many bytes of its file in memory.
const CACHE: usize = 16 << 20;

/// A job on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The name of the key that it was sent with.
    pub owner: String,
    /// What to draw; without the given pictures once it has ended.
    pub drawing: Drawing,
    /// Seconds since 1970.
    pub created: f64,
    /// Seconds that it may take.
    pub time: f64,
    /// Where it is: queued until it has ended.
    pub status: Status,
    /// When it ended, in seconds since 1970.
    #[serde(default)]
    pub ended: Option<f64>,
    /// Why there are no pictures.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// What came of it.
    #[serde(default)]
    pub outcome: Option<Outcome>,
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The way back from [`seconds`].
pub fn moment(seconds: f64) -> SystemTime {
    let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// `None` after an error of the disk: redb takes nothing more then until it is opened again.
    database: RwLock<Option<Database>>,
}

/// What went wrong with the database.
struct Broken {
    fault: Fault,
    /// Whether the database has to be opened again.
    is_closed: bool,
}

fn broken(error: impl Into<redb::Error>) -> Broken {
    let error = error.into();
    let is_closed = matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::TransactionPoisoned);
    let message = format!("the database of --state: {error}");
    let is_full = match &error {
        redb::Error::Io(error) => {
            matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
        }
        _ => false,
    };
    let fault = match is_full {
        true => Fault::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", message)
            .with_hint("make room on the disk of --state: jobs are taken again then"),
        false => Fault::internal(message),
    };
    Broken { fault, is_closed }
}

fn garbled(error: serde_json::Error) -> Broken {
    Broken { fault: Fault::internal(format!("the database of --state: a job: {error}")), is_closed: false }
}

fn create(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

impl Store {
    /// Opens the database in `folder`, or makes both.
    ///
    /// # Errors
    /// A text that names the folder: another server has it open, or it cannot be written.
    pub fn open(folder: &Path) -> Result<Store, String> {
        let named = |error: &dyn std::fmt::Display| format!("--state {}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(|error| named(&error))?;
        let path = folder.join(FILE);
        let database = create(&path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => named(&"another server has it open"),
            other => named(&other),
        })?;
        let store = Store { path, database: RwLock::new(Some(database)) };
        store.make_tables().map_err(|fault| named(&fault))?;
        Ok(store)
    }

    fn make_tables(&self) -> Result<(), Fault> {
        self.with(|database| {
            let write = database.begin_write().map_err(broken)?;
            write.open_table(JOBS).map_err(broken)?;
            write.open_table(PICTURES).map_err(broken)?;
            write.commit().map_err(broken)
        })
    }

    /// Does something with the database. An error of the disk closes it, and who comes next opens it again.
    fn with<R>(&self, work: impl FnOnce(&Database) -> Result<R, Broken>) -> Result<R, Fault> {
        let mut database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            drop(database);
            let mut closed = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if closed.is_none() {
                *closed = Some(create(&self.path).map_err(|error| broken(error).fault)?);
            }
            drop(closed);
            database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        }
        let done = match database.as_ref() {
            Some(database) => work(database),
            None => Err(Broken { fault: Fault::internal("the database of --state was closed"), is_closed: false }),
        };
        drop(database);
        done.map_err(|Broken { fault, is_closed }| {
            if is_closed {
                *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            fault
        })
    }

    /// Writes a job that is accepted. When this returns, it is on the disk.
    ///
    /// # Errors
    /// What the database says: a full disk, for one.
    pub fn accept(&self, id: Uuid, record: &Record) -> Result<(), Fault> {
        self.with(|database| {
            let json = serde_json::to_vec(record).map_err(garbled)?;
            let write = database.begin_write().map_err(broken)?;
            write.open_table(JOBS).map_err(broken)?.insert(id.as_u128(), json.as_slice()).map_err(broken)?;
            write.commit().map_err(broken)
        })
    }

    /// Writes the end of a job with its pictures, and nothing if it has ended before.
    ///
    /// # Errors
    /// As [`accept`](Store::accept).
    pub fn end(
        &self,
        id: Uuid,
        status: Status,
        (fault, outcome): (Option<&Fault>, Option<&Outcome>),
        pictures: &[Bytes],
    ) -> Result<bool, Fault> {
        self.with(|database| {
            let write = database.begin_write().map_err(broken)?;
            {
                let mut jobs = write.open_table(JOBS).map_err(broken)?;
                let before = jobs.get(id.as_u128()).map_err(broken)?.map(|json| json.value().to_vec());
                let Some(json) = before else { return Ok(false) };
                let mut record: Record = serde_json::from_slice(&json).map_err(garbled)?;
                if record.status.is_end() {
                    return Ok(false);
                }
                record.drawing = record.drawing.without_pictures();
                record.status = status;
                record.ended = Some(seconds(SystemTime::now()));
                record.fault = fault.cloned();
                record.outcome = outcome.cloned();
                let json = serde_json::to_vec(&record).map_err(garbled)?;
                jobs.insert(id.as_u128(), json.as_slice()).map_err(broken)?;
                let mut table = write.open_table(PICTURES).map_err(broken)?;
                for (at, picture) in (0..).zip(pictures) {
                    table.insert((id.as_u128(), at), &picture[..]).map_err(broken)?;
                }
            }
            write.commit().map_err(broken)?;
            Ok(true)
        })
    }

    /// All jobs, those first that were accepted first.
    ///
    /// # Errors
    /// What the database says.
    pub fn all(&self) -> Result<Vec<(Uuid, Record)>, Fault> {
        self.with(|database| {
            let read = database.begin_read().map_err(broken)?;
            let jobs = read.open_table(JOBS).map_err(broken)?;
            let mut all = Vec::new();
            for row in jobs.iter().map_err(broken)? {
                let (id, json) = row.map_err(broken)?;
                let record: Record = serde_json::from_slice(json.value()).map_err(garbled)?;
                all.push((Uuid::from_u128(id.value()), record));
            }
            all.sort_by(|(_, a), (_, b)| a.created.total_cmp(&b.created));
            Ok(all)
        })
    }

    /// Picture number `at` of a job.
    ///
    /// # Errors
    /// What the database says.
    pub fn picture(&self, id: Uuid, at: u32) -> Result<Option<Bytes>, Fault> {
        self.with(|database| {
            let read = database.begin_read().map_err(broken)?;
            let pictures = read.open_table(PICTURES).map_err(broken)?;
            let found = pictures.get((id.as_u128(), at)).map_err(broken)?;
            Ok(found.map(|picture| Bytes::copy_from_slice(picture.value())))
        })
    }

    /// Forgets jobs, and their pictures.
    ///
    /// # Errors
    /// What the database says.
    pub fn forget(&self, ids: &[Uuid]) -> Result<(), Fault> {
        self.with(|database| {
            let write = database.begin_write().map_err(broken)?;
            {
                let mut jobs = write.open_table(JOBS).map_err(broken)?;
                let mut pictures = write.open_table(PICTURES).map_err(broken)?;
                for id in ids {
                    let id = id.as_u128();
                    jobs.remove(id).map_err(broken)?;
                    pictures.retain_in((id, 0)..=(id, u32::MAX), |_, _| false).map_err(broken)?;
                }
            }
            write.commit().map_err(broken)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(prompt: &str, created: f64) -> Record {
        let drawing = Drawing { prompt: prompt.into(), image: Some("aGk=".into()), ..Drawing::default() };
        let owner = String::new();
        Record { owner, drawing, created, time: 1.0, status: Status::Queued, ended: None, fault: None, outcome: None }
    }

    #[test]
    fn a_job_ends_once_and_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        let pictures = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        {
            let store = Store::open(folder.path()).unwrap();
            store.accept(a, &record("a", 2.0)).unwrap();
            store.accept(b, &record("b", 1.0)).unwrap();
            let outcome = Outcome { seeds: vec![7], ..Outcome::default() };
            assert!(store.end(a, Status::Done, (None, Some(&outcome)), &pictures).unwrap());
            assert!(!store.end(a, Status::Failed, (Some(&Fault::late()), None), &[]).unwrap());
            assert!(!store.end(Uuid::new_v4(), Status::Done, (None, None), &[]).unwrap());
            assert!(Store::open(folder.path()).unwrap_err().contains("another server has it open"));
        }
        let store = Store::open(folder.path()).unwrap();
        let all = store.all().unwrap();
        let seen: Vec<_> = all.iter().map(|(id, it)| (*id, it.status, it.drawing.image.as_deref())).collect();
        assert_eq!(seen, [(b, Status::Queued, Some("aGk=")), (a, Status::Done, Some("(given)"))]);
        assert_eq!(all[1].1.outcome.as_ref().unwrap().seeds, [7]);
        assert_eq!(store.picture(a, 1).unwrap().as_deref(), Some(&b"two"[..]));
        store.forget(&[a]).unwrap();
        assert_eq!((store.all().unwrap().len(), store.picture(a, 0).unwrap()), (1, None));
    }
}
