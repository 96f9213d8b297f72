//! What each run measured, and what several runs say together.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

/// One number of a run.
#[derive(Debug, Clone)]
struct Figure {
    /// In JSON; ends in its unit.
    key: String,
    /// For people.
    label: String,
    value: f64,
}

/// The numbers of one run, in the order in which they are shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    /// One more.
    pub(crate) fn add(&mut self, key: impl Into<String>, label: impl Into<String>, value: f64) {
        self.0.push(Figure { key: key.into(), label: label.into(), value });
    }

    /// One more, where it is known.
    pub(crate) fn add_known(&mut self, key: &str, label: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.add(key, label, value);
        }
    }

    /// Those of another measurement of the same run, with this in front of their names.
    pub(crate) fn add_all(&mut self, key: &str, label: &str, others: Figures) {
        for Figure { key: name, label: shown, value } in others.0 {
            self.add(format!("{key}_{name}"), format!("{label}: {shown}"), value);
        }
    }

    /// The number of that name.
    pub(crate) fn get(&self, key: &str) -> Option<f64> {
        self.0.iter().find(|figure| figure.key == key).map(|figure| figure.value)
    }

    /// Whether there are none.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn json(&self) -> Value {
        let entries = self.0.iter().map(|figure| (figure.key.clone(), json!(rounded(figure.value))));
        Value::Object(entries.collect())
    }
}

/// Several runs of the same.
#[derive(Debug, Default)]
pub(crate) struct Runs(Vec<Figures>);

/// What several runs say of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Runs {
    /// One more.
    pub(crate) fn add(&mut self, run: Figures) {
        self.0.push(run);
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// `runs`: each with its numbers; `medians`: of each number the median, lowest and highest.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let medians = self.spreads().map(|(figure, Spread { median, lowest, highest })| {
            let spread = json!({
                "median": rounded(median), "lowest": rounded(lowest), "highest": rounded(highest)
            });
            (figure.key.clone(), spread)
        });
        let medians: Map<String, Value> = medians.collect();
        let runs = Value::Array(self.0.iter().map(Figures::json).collect());
        [("runs".to_owned(), runs), ("medians".to_owned(), Value::Object(medians))].into_iter().collect()
    }

    /// A table.
    pub(crate) fn show(&self, out: &mut impl Write) -> io::Result<()> {
        let width = self.spreads().map(|(figure, _)| figure.label.len()).max().unwrap_or_default();
        if self.0.len() == 1 {
            for (figure, spread) in self.spreads() {
                writeln!(out, "{:<width$}  {:>12}", figure.label, shown(spread.median))?;
            }
            return Ok(());
        }
        writeln!(out, "{:<width$}  {:>12}  {:>12}  {:>12}", "", "median", "lowest", "highest")?;
        for (figure, Spread { median, lowest, highest }) in self.spreads() {
            let (median, lowest, highest) = (shown(median), shown(lowest), shown(highest));
            writeln!(out, "{:<width$}  {median:>12}  {lowest:>12}  {highest:>12}", figure.label)?;
        }
        Ok(())
    }

    /// Of every number that some run has, in the order of the run that has most.
    fn spreads(&self) -> impl Iterator<Item = (&Figure, Spread)> {
        let fullest = self.0.iter().max_by_key(|figures| figures.0.len());
        let figures = fullest.into_iter().flat_map(|figures| figures.0.iter());
        figures.map(|figure| {
            let values: Vec<f64> = self.0.iter().filter_map(|run| run.get(&figure.key)).collect();
            (figure, Spread::of(values))
        })
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let (middle, count) = (values.len() / 2, values.len());
        let median =
            if count % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.wrapping_sub(1)), at(middle)) };
        Self { median, lowest: at(0), highest: at(count.wrapping_sub(1)) }
    }
}

/// Six digits are more than any measurement has.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let digits = 5 - value.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits);
    if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value }
}

fn shown(value: f64) -> String {
    match value.abs() {
        size if value.fract() == 0.0 && size < 1e15 => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(values: &[(&str, f64)]) -> Figures {
        let mut figures = Figures::default();
        values.iter().for_each(|(key, value)| figures.add(*key, key.to_uppercase(), *value));
        figures
    }

    #[test]
    fn the_median_stands_between_lowest_and_highest() {
        let check = |values: &[f64], median: f64| {
            assert_eq!(Spread::of(values.to_vec()).median, median, "{values:?}");
        };
        check(&[3.0], 3.0);
        check(&[5.0, 1.0, 3.0], 3.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.5);
        let spread = Spread::of(vec![5.0, 1.0, 3.0]);
        assert_eq!((spread.lowest, spread.highest), (1.0, 5.0));
    }

    #[test]
    fn runs_are_shown_to_people_and_programs() {
        let mut runs = Runs::default();
        runs.add(run(&[("mb_per_s", 123.456_789_1), ("blocks", 100.0)]));
        runs.add(run(&[("mb_per_s", 100.0)]));
        runs.add(run(&[("mb_per_s", 130.0), ("blocks", 300.0)]));
        let json = runs.json();
        assert_eq!(json["medians"]["mb_per_s"]["median"], 123.457);
        assert_eq!(json["medians"]["blocks"]["highest"], 300.0);
        assert_eq!(json["runs"][0]["mb_per_s"], 123.457);
        let mut out = Vec::new();
        runs.show(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let line = text.lines().nth(1).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["MB_PER_S", "123", "100", "130"]);
    }
}
