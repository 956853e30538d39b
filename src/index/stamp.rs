//! Which file it is, and whether it was written to since.

use std::time::SystemTime;

/// What tells a file from every other, and from itself before it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Nanoseconds since 1970: when its bytes changed last, and when anything of it did. No program sets the second.
    times: [i128; 2],
}

/// Two changes within a tick of the file system's clock look like one. No clock in use ticks as slowly as this.
const TICK_NANOSECONDS: i128 = 2_000_000_000;

impl Stamp {
    /// That of an open file.
    #[cfg(unix)]
    pub(super) fn of(about: &std::fs::Metadata) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let times = [time(about.mtime(), about.mtime_nsec()), time(about.ctime(), about.ctime_nsec())];
        Stamp { device: about.dev(), inode: about.ino(), bytes: about.len(), times }
    }

    /// The same as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Stamp { device, inode, bytes, times } = self;
        let mut all = [device.to_le_bytes(), inode.to_le_bytes(), bytes.to_le_bytes()].concat();
        for time in times {
            all.extend_from_slice(&time.to_le_bytes());
        }
        all
    }

    /// Whether a change after `time` is sure to give the file another stamp.
    pub fn is_settled(&self, time: SystemTime) -> bool {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos().cast_signed());
        self.times.iter().all(|&changed| changed + TICK_NANOSECONDS < since)
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_write_gives_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = |name: &str| Stamp::of(&fs::metadata(folder.path().join(name)).unwrap());
        fs::write(folder.path().join("one"), "1").unwrap();
        fs::copy(folder.path().join("one"), folder.path().join("other")).unwrap();
        let one = stamp("one");
        assert!(one == stamp("one") && one != stamp("other") && one.to_bytes() != stamp("other").to_bytes());
        assert!(!one.is_settled(SystemTime::now()) && one.is_settled(SystemTime::now() + Duration::from_secs(9)));
        std::thread::sleep(Duration::from_millis(50));
        // The same size, and the time of its bytes put back: as a program that hides what it did.
        let file = fs::File::options().write(true).open(folder.path().join("one")).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        fs::write(folder.path().join("one"), "2").unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(one, stamp("one"));
    }
}
