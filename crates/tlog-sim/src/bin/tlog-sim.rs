//! Runs seeds.
fn main() {
    let args: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let rule: Option<tlog_sim::Rule> = std::env::args().skip(1).find_map(|a| a.parse().ok());
    let obeyed = std::env::args().any(|a| a == "obeyed");
    let (from, to) = (args[0], args[1]);
    let told = from == to;
    let mut sum = tlog_sim::Tally::default();
    let began = std::time::Instant::now();
    for seed in from..=to {
        let t = std::time::Instant::now();
        let outcome = tlog_sim::run(seed, tlog_sim::Options { rule, obeyed, told });
        for line in &outcome.story {
            println!("{line}");
        }
        if let Some(found) = &outcome.found {
            println!("seed {seed}: {found}");
        }
        if t.elapsed().as_millis() > 300 {
            println!("seed {seed} took {:?}", t.elapsed());
        }
        sum.add(outcome.tally);
    }
    println!("{:?} {sum:?}", began.elapsed());
}
