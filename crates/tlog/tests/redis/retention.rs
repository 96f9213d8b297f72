//! History that is removed gives its memory back, and a server that was away removes it when it is back.

use serde_json::Value;

use crate::site::{Disk, Site};

fn shards(site: &Site, store: usize) -> u64 {
    let said = site.redis[store].cli(&["--scan", "--pattern", "*"]);
    said.lines().count() as u64
}

fn memory(site: &Site, store: usize) -> u64 {
    let said = site.redis[store].cli(&["INFO", "memory"]);
    let line = said.lines().find_map(|line| line.trim().strip_prefix("used_memory_dataset:")).unwrap();
    line.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_gives_its_memory_back_also_on_a_server_that_was_away() {
    let site = Site::new();
    let server = site.serve();
    let mut disk = Disk::connect(&server, "vda").await;
    disk.write(2000).await;
    site.wait_until_whole("vda", std::time::Duration::from_secs(60));
    site.redis[2].kill();
    let admin = format!("--admin-listen={}", server.admin());
    let prune = ["prune", "vda", "--keep-within", "1ms", "--json", &admin];
    // Not everything is on all stores, and that is no moment to give anything up.
    disk.write(5).await;
    let refused: Value = serde_json::from_str(&site.place.tlog_ok(&prune)).unwrap();
    assert_eq!(refused["pruned"], false, "{refused}");
    assert!(refused["why_not"].as_str().unwrap().contains("--degraded"), "{refused}");

    let before: Vec<(u64, u64)> = [0, 1].map(|store| (shards(&site, store), memory(&site, store))).to_vec();
    let degraded = site.place.tlog_ok(&[&prune[..], &["--degraded"]].concat());
    let done: Value = serde_json::from_str(&degraded).unwrap();
    assert_eq!(done["pruned"], true, "{done}");
    assert_eq!(done["later"].as_array().unwrap().len(), 1, "{done}");
    for (store, (keys, bytes)) in before.into_iter().enumerate() {
        let (keys_now, bytes_now) = (shards(&site, store), memory(&site, store));
        // Half of the bytes is what a server takes for itself.
        assert!(keys_now < keys / 2 && bytes_now < bytes * 3 / 4, "{keys} {keys_now}, {bytes} {bytes_now}");
    }
    assert_eq!(site.restored("vda"), disk.expected());

    site.redis[2].restart();
    let whole = site.wait_until_whole("vda", std::time::Duration::from_secs(60));
    assert_eq!(whole["first"], done["first"]);
    assert!(shards(&site, 2) <= shards(&site, 0) + 2);
    disk.write(20).await;
    assert_eq!(site.restored("vda"), disk.expected());
    server.stop();
}
