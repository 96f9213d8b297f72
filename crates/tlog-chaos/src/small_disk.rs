//! A small file system of its own, in memory, which can be filled.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// Set in a process that is in a name space of its own.
const ALONE: &str = "TLOG_CHAOS_ALONE";

/// Begins this program anew in a name space for mounts of its own, where the system allows that: what is mounted there nobody else sees,
/// and it goes away with the last process in it, however that ends. Answers whether it is in one; not, where it is not possible.
pub(crate) fn be_alone() -> anyhow::Result<bool> {
    if std::env::var_os(ALONE).is_some() {
        return Ok(true);
    }
    // As root, or as one who looks like root to himself.
    for options in [&["--mount"][..], &["--map-root-user", "--mount"]] {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(options).args(["--propagation", "private"]);
            command
        };
        let directory = tempfile::tempdir()?;
        let tried = unshare()
            .args(["mount", "-t", "tmpfs", "-o", "size=1m", "tlog-chaos"])
            .arg(directory.path())
            .output();
        if tried.is_ok_and(|tried| tried.status.success()) {
            let error = unshare()
                .arg(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .env(ALONE, "1")
                .exec();
            bail!("cannot begin in a name space: {error}");
        }
    }
    Ok(false)
}

/// A file system, and what fills it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one with room for so many bytes. Needs [`be_alone`].
    pub(crate) fn mount(path: &Path, bytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tlog-chaos"])
            .arg(path)
            .output()
            .context("cannot run mount")?;
        if !mounted.status.success() {
            bail!("cannot mount {}: {}", path.display(), String::from_utf8_lossy(&mounted.stderr));
        }
        Ok(Self { path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all the room that is left.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.ballast())?;
        for piece in [1 << 20, 1 << 12] {
            let zeros = vec![0; piece];
            loop {
                match file.write(&zeros) {
                    Ok(length) if length > 0 => {}
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("cannot fill a disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        fs::remove_file(self.ballast()).context("cannot free a disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has files there loses them later. It would go with this process anyway.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}
