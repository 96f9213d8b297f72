//! Standard output, block devices, images to compare, and full file systems.

use std::process::{Command, Stdio};

use crate::{BLOCK, Scene, json, names};

#[test]
fn standard_output_gets_the_disk_in_order_and_the_report_goes_to_standard_error() {
    let scene = Scene::record(200);
    for memory in ["1", "100KiB", "128MiB"] {
        let said = scene.place.tlog(&["restore", "vda", "-o", "-", "--memory", memory, "--json"]);
        assert!(said.status.success(), "{said:?}");
        assert!(said.stdout == scene.image, "with {memory}");
        let report = json(&String::from_utf8(said.stderr).unwrap());
        assert!(report["aggregations_read"].as_u64() >= report["aggregations_needed"].as_u64(), "{report}");
    }
    assert_eq!(names(scene.place.path(), "restoring"), Vec::<String>::new());
    // Whoever reads goes away: half a disk is no success.
    let mut child = scene.place.tlog_begin(&["restore", "vda", "-o", "-"]);
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn an_image_is_compared_with_the_disk_without_writing() {
    let scene = Scene::record(100);
    let against = |arguments: &[&str], code: i32| {
        let said = scene.place.tlog(&[&["restore", "vda", "--verify-against"], arguments].concat());
        assert_eq!(said.status.code(), Some(code), "{said:?}");
        (String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap())
    };
    let (said, _) = against(&["disk.img"], 0);
    assert!(said.starts_with("disk.img is vdisk vda as it was at "), "{said}");
    let mut other = scene.image.clone();
    other[7 * BLOCK + 5] ^= 1;
    other[4 * BLOCK] ^= 1;
    std::fs::write(scene.path("other.img"), &other).unwrap();
    let (said, _) = against(&["other.img"], 1);
    assert!(said.contains("other.img is NOT vdisk vda") && said.contains("2 blocks differ (4, 7)"), "{said}");
    let report = json(&against(&["other.img", "--json"], 1).0);
    assert_eq!((&report["equal"], &report["blocks_different"]), (&false.into(), &2.into()), "{report}");
    std::fs::write(scene.path("short.img"), &scene.image[..BLOCK]).unwrap();
    let (said, _) = against(&["short.img"], 1);
    assert!(said.contains("it has 4096 bytes, and the disk 409700"), "{said}");
    let (_, said) = against(&["nowhere.img"], 3);
    assert!(said.contains("nowhere.img cannot be read"), "{said}");
    against(&["disk.img", "--sequence", "100000"], 3);
    let both = scene.place.tlog(&["restore", "vda", "--verify-against", "disk.img", "-o", "x"]);
    assert_eq!(both.status.code(), Some(64), "{both:?}");
    assert_eq!(scene.place.tlog(&["restore", "vda"]).status.code(), Some(64));
}

/// A loop device that goes away, where this machine gives one.
struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &std::path::Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        if !made.status.success() {
            eprintln!("no loop device here, which is not tested: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_written_over_only_by_word_and_only_if_the_disk_fits() {
    let scene = Scene::record(200);
    let file = scene.path("device");
    std::fs::write(&file, vec![0xa5; 1 << 20]).unwrap();
    let Some(device) = LoopDevice::of(&file) else { return };
    let restore = ["restore", "vda", "-o", &device.0];
    let said = scene.place.tlog_fails(&restore);
    assert!(said.contains("is a block device") && said.contains("--force"), "{said}");
    scene.place.tlog_ok(&[&restore[..], &["--force", "--check"]].concat());
    let mut expected = scene.image.clone();
    expected.resize(1 << 20, 0);
    assert!(std::fs::read(&device.0).unwrap() == expected);
    scene.place.tlog_ok(&["restore", "vda", "--verify-against", &device.0]);

    std::fs::write(scene.path("small"), vec![0xa5; 64 << 10]).unwrap();
    let small = LoopDevice::of(&scene.path("small")).unwrap();
    let said = scene.place.tlog_fails(&["restore", "vda", "-o", &small.0, "--force"]);
    assert!(said.contains("take a larger device"), "{said}");
    assert!(std::fs::read(&small.0).unwrap().iter().all(|byte| *byte == 0xa5));
}

/// A small file system in memory, where that may be made.
struct SmallFileSystem(std::path::PathBuf);

impl SmallFileSystem {
    fn at(path: std::path::PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path);
        let mounted = mounted.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("no file system can be mounted here; a full one is not tested");
        }
        mounted.then_some(Self(path))
    }

    fn remount(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_without_room_is_told_before_and_one_that_fills_up_can_be_gone_on_with() {
    let scene = Scene::record(400);
    let Some(small) = SmallFileSystem::at(scene.path("small"), "1m") else { return };
    let restore = ["restore", "vda", "-o", "small/out.img", "--sync-every", "1", "--memory", "1"];
    let said = scene.place.tlog_fails(&restore);
    assert!(said.contains("1.6 MiB of content") && said.contains("--ignore-free-space"), "{said}");
    assert_eq!(names(&small.0, ""), Vec::<String>::new());
    let said = scene.place.tlog_fails(&[&restore[..], &["--ignore-free-space"]].concat());
    assert!(said.contains("No space left on device"), "{said}");
    small.remount("4m");
    let said = scene.place.tlog_ok(&restore);
    assert!(said.contains("were there from before"), "{said}");
    scene.is_the_disk("small/out.img");
}
