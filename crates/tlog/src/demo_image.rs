//! The disk image of the demo: a real file system where `mkfs.ext4` is there, else a generated one.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Where Debian keeps the tools of file systems; not in everybody's search path.
const SBIN: &str = "/usr/sbin:/sbin:/usr/local/sbin";

/// The image, and how it is changed.
pub(crate) struct DemoImage {
    path: PathBuf,
    files: PathBuf,
    bytes: u64,
    kind: ImageKind,
    random: SmallRng,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ImageKind {
    /// Files are written into it and removed by debugfs.
    Ext4,
    /// Runs of blocks are overwritten and cleared.
    Generated,
}

impl DemoImage {
    pub(crate) fn make(scratch: &Path, bytes: u64, generated: bool) -> anyhow::Result<Self> {
        let files = scratch.join("files");
        std::fs::create_dir(&files)?;
        let mut image = Self {
            path: scratch.join("disk.img"),
            files,
            bytes,
            kind: ImageKind::Generated,
            random: SmallRng::seed_from_u64(4096),
        };
        std::fs::File::create(&image.path)?.set_len(bytes)?;
        let tools = ["mkfs.ext4", "debugfs", "e2fsck"];
        let is_there =
            |name: &&str| tool(name).arg("-V").output().is_ok_and(|output| output.status.success());
        match !generated && tools.iter().all(is_there) {
            true => image.make_ext4()?,
            false => image.overwrite(0, bytes * 2 / 5)?,
        }
        Ok(image)
    }

    fn make_ext4(&mut self) -> anyhow::Result<()> {
        let root = self.files.join("root");
        std::fs::create_dir(&root)?;
        for number in 0..40 {
            let bytes = self.random.random_range(1..self.bytes / 100);
            self.write_file(&root.join(format!("file-{number}")), bytes)?;
        }
        let output = tool("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&self.path).output()?;
        if !output.status.success() {
            bail!("mkfs.ext4 failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        self.kind = ImageKind::Ext4;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a person is told that it is.
    pub(crate) fn what(&self) -> &'static str {
        match self.kind {
            ImageKind::Ext4 => "an ext4 file system with 40 files, by mkfs.ext4",
            ImageKind::Generated => {
                "generated, not a file system (that needs mkfs.ext4 and its tools, Debian: e2fsprogs)"
            }
        }
    }

    /// Changes it, and answers how. `number` counts from 1.
    pub(crate) fn change(&mut self, number: u32) -> anyhow::Result<String> {
        match self.kind {
            ImageKind::Ext4 => self.change_files(number),
            ImageKind::Generated => self.change_blocks(),
        }
    }

    fn change_files(&mut self, number: u32) -> anyhow::Result<String> {
        let mut commands = String::new();
        for added in 0..3 {
            let name = format!("new-{number}-{added}");
            let file = self.files.join(&name);
            let bytes = self.random.random_range(1..self.bytes / 60);
            self.write_file(&file, bytes)?;
            commands.push_str(&format!("write {} {name}\n", file.display()));
        }
        for removed in 0..2 {
            commands.push_str(&format!("rm file-{}\n", number * 2 + removed));
        }
        let mut debugfs = tool("debugfs");
        debugfs.args(["-w", "-f", "-"]).arg(&self.path);
        let mut child = debugfs.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        child.stdin.take().context("debugfs takes no commands")?.write_all(commands.as_bytes())?;
        if !child.wait()?.success() {
            bail!("debugfs could not change the image");
        }
        Ok("wrote 3 files into it and removed 2".to_owned())
    }

    fn change_blocks(&mut self) -> anyhow::Result<String> {
        for _ in 0..3 {
            let length = self.random.random_range(1..self.bytes / 60);
            let at = self.random.random_range(0..self.bytes - length);
            self.overwrite(at, length)?;
        }
        let length = self.bytes / 100;
        let at = self.random.random_range(0..self.bytes - length);
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&vec![0; usize::try_from(length)?])?;
        Ok("overwrote 3 places in it and cleared one".to_owned())
    }

    /// What a restored image is besides equal: a file system without a fault.
    pub(crate) fn check(&self, image: &Path) -> anyhow::Result<&'static str> {
        if self.kind == ImageKind::Generated {
            return Ok("");
        }
        let output = tool("e2fsck").args(["-f", "-n"]).arg(image).output()?;
        match output.status.success() {
            true => Ok(", and e2fsck finds no fault in it"),
            false => Ok(", but e2fsck finds FAULTS in it"),
        }
    }

    fn write_file(&mut self, path: &Path, bytes: u64) -> anyhow::Result<()> {
        let mut content = vec![0; usize::try_from(bytes)?];
        // Half of it compresses, as files do.
        let (random, plain) = content.split_at_mut(usize::try_from(bytes / 2)?);
        self.random.fill(random);
        plain
            .iter_mut()
            .zip(b"All work and no play makes a dull file. ".iter().cycle())
            .for_each(|(to, from)| *to = *from);
        std::fs::write(path, content)?;
        Ok(())
    }

    fn overwrite(&mut self, at: u64, bytes: u64) -> anyhow::Result<()> {
        let mut content = vec![0; usize::try_from(bytes)?];
        self.random.fill(&mut content[..]);
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&content)?;
        Ok(())
    }
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{SBIN}")).env("LC_ALL", "C");
    command
}
