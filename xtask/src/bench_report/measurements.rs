//! What is measured for each chart.

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Some minutes: to see that everything works.
    Quick,
    /// For figures that are to be kept.
    Full,
}

/// A chart: one measurement for each point.
pub(super) struct Series {
    /// Of its files.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What grows from point to point.
    pub(super) grows: &'static str,
    /// `write`, `scale`: arguments that all points have.
    pub(super) common: &'static [&'static str],
    /// Arguments that a point has besides, with the point's label where `{}` is. Several, where the label has parts.
    pub(super) varied: &'static [&'static str],
    /// The values of a point. Those before the bar are the quick ones.
    pub(super) quick: &'static [&'static str],
    pub(super) more: &'static [&'static str],
    /// The first one is drawn.
    pub(super) figures: &'static [Figure],
}

/// A figure of `tlog bench`.
pub(super) struct Figure {
    /// In JSON, with the point's label where `{}` is.
    pub(super) key: &'static str,
    pub(super) title: &'static str,
}

/// One point.
pub(super) struct Measurement {
    pub(super) series: &'static str,
    pub(super) label: String,
    pub(super) arguments: Vec<String>,
}

const WRITTEN: &[Figure] = &[
    Figure { key: "data_mb_per_s", title: "block data, MB/s" },
    Figure { key: "server_cpu_s_per_gb", title: "server CPU, s/GB" },
    Figure { key: "stores_cpu_s_per_gb", title: "stores CPU, s/GB" },
    Figure { key: "client_cpu_s_per_gb", title: "client CPU, s/GB" },
    Figure { key: "server_peak_memory_mb", title: "server peak memory, MB" },
];

/// All of them, in the order of the page.
pub(super) const SERIES: &[Series] = &[
    Series {
        name: "flush-size",
        title: "Throughput by flush-size",
        grows: "blocks of an aggregation",
        common: &["write"],
        varied: &["--flush-size={}"],
        quick: &["1", "5", "25", "100", "250"],
        more: &["1000"],
        figures: WRITTEN,
    },
    Series {
        name: "block-size",
        title: "Throughput by block size",
        grows: "size of a block",
        common: &["write"],
        varied: &["--block-size={}"],
        quick: &["512", "4KiB", "16KiB", "64KiB"],
        more: &["256KiB"],
        figures: WRITTEN,
    },
    Series {
        name: "shards",
        title: "Throughput by number of shards",
        grows: "data + parity shards",
        common: &["write"],
        varied: &["--data-shards={0}", "--parity-shards={1}"],
        quick: &["1+1", "2+1", "4+2", "8+3"],
        more: &[],
        figures: WRITTEN,
    },
    Series {
        name: "vdisks",
        title: "Throughput by number of vdisks that write",
        grows: "active vdisks",
        common: &["scale", "--idle=0", "--history=0"],
        varied: &["--active={}"],
        quick: &["1", "10", "100"],
        more: &["1000"],
        figures: &[
            Figure { key: "active_{}_data_mb_per_s", title: "block data, MB/s" },
            Figure { key: "active_{}_slowest_to_mean", title: "blocks of the slowest to the mean" },
            Figure { key: "active_{}_server_cpu_s_per_gb", title: "server CPU, s/GB" },
            Figure { key: "active_{}_server_peak_memory_mb", title: "server peak memory, MB" },
        ],
    },
    Series {
        name: "idle",
        title: "Memory of the server by number of idle vdisks",
        grows: "idle vdisks",
        common: &["scale", "--active=0", "--history=0"],
        // One before it: what the first vdisk takes once is no cost of the others.
        varied: &["--idle=1,{}"],
        quick: &["10", "100", "1000"],
        more: &["10000"],
        figures: &[
            Figure { key: "idle_{}_server_mb", title: "server, MB" },
            Figure { key: "idle_{}_kib_per_further_vdisk", title: "KiB for each beyond the first" },
            Figure { key: "idle_{}_connect_ms", title: "opening one and its first block, ms" },
        ],
    },
    Series {
        name: "history",
        title: "Opening a log by its length",
        grows: "aggregations in the log",
        common: &["scale", "--idle=0", "--active=0"],
        varied: &["--history={}"],
        quick: &["100", "1000", "10000"],
        more: &["200000"],
        figures: &[
            Figure { key: "history_open_ms", title: "for a client, ms" },
            Figure { key: "history_read_open_ms", title: "for reading, ms" },
            Figure { key: "history_open_kib", title: "server memory, KiB" },
            Figure { key: "history_aggregations_per_s", title: "aggregations/s as it was written" },
        ],
    },
];

impl Series {
    /// One for each point, in order.
    pub(super) fn measurements(&self, extent: Extent) -> Vec<Measurement> {
        let more = if extent == Extent::Full { self.more } else { &[] };
        let labels = self.quick.iter().chain(more);
        labels.map(|label| self.measurement(label, extent)).collect()
    }

    fn measurement(&self, label: &str, extent: Extent) -> Measurement {
        let (runs, seconds) = match extent {
            Extent::Quick => ("1", "1"),
            Extent::Full => ("5", "3"),
        };
        let (first, second) = label.split_once('+').unwrap_or((label, ""));
        let fill = |text: &&str| text.replace("{}", label).replace("{0}", first).replace("{1}", second);
        let mut arguments = vec!["bench".to_owned()];
        arguments.extend(self.common.iter().map(|&text| text.to_owned()));
        arguments.extend(self.varied.iter().map(fill));
        arguments.extend(["--json", "--runs", runs, "--seconds", seconds].map(str::to_owned));
        Measurement { series: self.name, label: label.to_owned(), arguments }
    }
}

impl Measurement {
    /// The file that has it.
    pub(super) fn file(&self) -> String {
        format!("{}-{}.json", self.series, self.label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_a_point_goes_where_it_belongs() {
        let check = |name: &str, label: &str, expected: &str| {
            let series = SERIES.iter().find(|series| series.name == name).unwrap();
            let all = series.measurements(Extent::Quick);
            let found = all.iter().find(|measurement| measurement.label == label).unwrap();
            assert!(found.arguments.join(" ").contains(expected), "{:?}", found.arguments);
        };
        check("shards", "8+3", "bench write --data-shards=8 --parity-shards=3 --json --runs 1");
        check("idle", "100", "bench scale --active=0 --history=0 --idle=1,100 --json");
        check("block-size", "4KiB", "--block-size=4KiB");
    }
}
