//! A real file system at ten moments of its life, each restored and checked by the file system's own tools.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::json;
use crate::support::Place;

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;

/// Where Debian keeps the tools of file systems; not in everybody's search path.
fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
}

fn ok(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn debugfs(image: &Path, request: &str, writes: bool) -> Vec<u8> {
    let mut debugfs = tool("debugfs");
    if writes {
        debugfs.arg("-w");
    }
    ok(debugfs.args(["-R", request]).arg(image)).stdout
}

#[test]
fn a_file_system_is_clean_and_has_its_files_at_each_of_ten_moments() {
    let place = Place::new();
    let (image, restored) = (place.path().join("disk.img"), place.path().join("restored.img"));
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    ok(tool("mkfs.ext4").args(["-q", "-F"]).arg(&image));
    let server = place.server(&[]);
    let mut random = SmallRng::seed_from_u64(3);
    let mut moments: Vec<(u64, Files)> = Vec::new();
    let mut files = Files::new();
    for moment in 0..10 {
        for number in 0..3 {
            let mut content = vec![0; random.random_range(1..60_000)];
            random.fill(&mut content[..]);
            let name = format!("file-{moment}-{number}");
            let outside = place.path().join(&name);
            std::fs::write(&outside, &content).unwrap();
            debugfs(&image, &format!("write {} {name}", outside.display()), true);
            files.push((name, content));
        }
        if moment > 2 {
            let (gone, _) = files.remove(random.random_range(0..files.len()));
            debugfs(&image, &format!("rm {gone}"), true);
        }
        let said = place.tlog_ok(&["record", "vda", "disk.img", "--server", &server.addr(), "--json"]);
        moments.push((json(&said)["last_sequence"].as_u64().unwrap(), files.clone()));
    }
    server.stop();
    for (sequence, files) in &moments {
        let sequence = sequence.to_string();
        place.tlog_ok(&[
            "restore",
            "vda",
            "-o",
            "restored.img",
            "--force",
            "--sequence",
            &sequence,
            "--check",
        ]);
        ok(tool("e2fsck").args(["-f", "-n"]).arg(&restored));
        for (name, content) in files {
            assert!(
                debugfs(&restored, &format!("cat /{name}"), false) == *content,
                "{name} after {sequence}"
            );
        }
        let listed = String::from_utf8(debugfs(&restored, "ls -p /", false)).unwrap();
        assert_eq!(listed.matches("/file-").count(), files.len(), "{listed}");
    }
}
