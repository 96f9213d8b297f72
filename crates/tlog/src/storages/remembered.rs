//! Which stores a storage cluster had when its logs were last known to be on all of them.
//!
//! After a restart the documents alone do not tell whether a store is new: with several that are, every log on the old ones would look as
//! if there had never been one. So the server writes down what it used, in its data directory, and begins with at most one new store.

use std::io;
use std::path::PathBuf;

use tlog_config::StoreAddress;

/// The note on one cluster.
#[derive(Debug)]
pub(super) struct Remembered {
    file: PathBuf,
}

impl Remembered {
    pub(super) fn of(data_dir: &std::path::Path, cluster: &str) -> Self {
        // The name of a cluster has no slash in it, and does not begin with a dot.
        Self { file: data_dir.join("clusters").join(format!("{cluster}.stores")) }
    }

    pub(super) fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Addresses as they are shown, in order; none where nothing is written down.
    pub(super) fn read(&self) -> io::Result<Option<Vec<String>>> {
        match std::fs::read_to_string(&self.file) {
            Ok(text) => Ok(Some(text.lines().map(str::to_owned).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes down that all logs are on these. Where that does not go, it is warned of: the next start looks less closely.
    pub(super) fn write(&self, stores: &[StoreAddress]) {
        let text: String = stores.iter().map(|store| format!("{store}\n")).collect();
        if let Err(error) = self.replace(&text) {
            tracing::warn!(file = %self.file.display(), %error, "the stores in use cannot be written down; changes of them while no server runs will not be noticed");
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        if self.read().is_ok_and(|known| known.is_some_and(|known| known.iter().eq(text.lines()))) {
            return Ok(());
        }
        let directory = self.file.parent().unwrap_or(std::path::Path::new("."));
        std::fs::create_dir_all(directory)?;
        let mut beside = tempfile::NamedTempFile::new_in(directory)?;
        io::Write::write_all(&mut beside, text.as_bytes())?;
        beside.as_file().sync_all()?;
        beside.persist(&self.file)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_back_without_passwords() {
        let directory = tempfile::tempdir().unwrap();
        let remembered = Remembered::of(directory.path(), "one");
        assert_eq!(remembered.read().unwrap(), None);
        let stores = ["redis://:hush@a:1", "file:/b"].map(|text| StoreAddress::parse(text).unwrap());
        remembered.write(&stores);
        let expected = ["redis://a:1/0", "file:/b"].map(str::to_owned).to_vec();
        assert_eq!(remembered.read().unwrap(), Some(expected));
        remembered.write(&stores[..1]);
        assert_eq!(remembered.read().unwrap().unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(directory.path().join("clusters")).unwrap().count(), 1);
    }
}
