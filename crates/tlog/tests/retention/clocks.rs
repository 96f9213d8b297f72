//! Clients whose clocks are wrong: what is removed does not go by them.

use super::*;

/// A write for each hour from so many days ago to others, one after the other.
async fn write_hours(disk: &mut Disk, days: std::ops::Range<u64>) {
    let now = now();
    for hour in (days.start * 24 + 1..=days.end * 24).rev() {
        disk.write(now - hour * HOUR).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_a_clock_that_was_reset_costs_no_moment_of_the_window_and_no_day() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    write_hours(&mut disk, 10..20).await;
    disk.write(7).await;
    write_hours(&mut disk, 0..10).await;
    let yesterday = disk.last() - 24;
    disk.write(8).await;
    disk.write_now(3).await;

    let keep = ["prune", "vda", "--keep-within", "72h", "--keep-daily", "15", "--anyway"];
    let done = json_of(&place, &keep);
    assert_eq!(done["pruned"], true, "{done}");
    for sequence in [yesterday - 24, yesterday, disk.last()] {
        let at = format!("seq:{sequence}");
        assert_eq!(restored(&place, "a", &["--at", &at]), disk.after(sequence));
    }
    let points = done["points"].as_array().unwrap();
    assert!(points.len() >= 11, "one for each day: {done}");
    let mut days: Vec<u64> =
        points.iter().map(|point| point["place"]["moment_ns"].as_u64().unwrap() / (24 * HOUR)).collect();
    days.dedup();
    assert_eq!(days.len(), points.len(), "{done}");
    for point in points {
        let sequence = point["place"]["sequence"].as_u64().unwrap();
        let at = format!("gen:1/seq:{sequence}");
        assert_eq!(restored(&place, "b", &["--at", &at]), disk.after(sequence), "{point}");
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_clock_is_always_behind_nothing_is_removed_before_somebody_says_how_far() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    write_hours(&mut disk, 400..402).await;
    disk.client.flush().await.unwrap();
    let held = json_of(&place, &["prune", "vda", "--keep-within", "30d", "--anyway"]);
    assert_eq!((&held["pruned"], &held["first"]), (&json!(false), &json!(1)));
    assert!(held["why_not"].as_str().unwrap().contains("clock"), "{held}");
    let done = json_of(&place, &["prune", "vda", "--keep-within", "401d", "--anyway"]);
    assert_eq!(done["pruned"], true, "{done}");
    assert_eq!(restored(&place, "a", &[]), disk.after(disk.last()));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_from_the_future_does_not_hold_all_that_comes_after_it() {
    let place = Place::new();
    let server = place.server(FLUSH);
    let mut disk = Disk::connect(&server).await;
    disk.write(now() + 1000 * 24 * HOUR).await;
    disk.write_now(30).await;
    let window = Instant::now();
    disk.write_now(5).await;
    while window.elapsed() < Duration::from_millis(10) {
        disk.write_now(1).await;
    }
    let within = format!("{}ms", window.elapsed().as_millis());
    let done = json_of(&place, &["prune", "vda", "--keep-within", &within, "--anyway"]);
    assert_eq!(done["pruned"], true, "{done}");
    assert_eq!(restored(&place, "a", &[]), disk.after(disk.last()));
    server.stop();
}
