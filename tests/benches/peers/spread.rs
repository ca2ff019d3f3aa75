//! Medians, with the least and the most beside them.

use serde::Serialize;

/// Of several values.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            least: at(0),
            median: at(values.len() / 2),
            most: at(values.len().saturating_sub(1)),
        }
    }

    /// For people. Of a single value there is no spread to tell.
    pub(crate) fn show(&self, digits: usize) -> String {
        let number = |value: f64| match value.is_infinite() {
            true => "no bound".to_owned(),
            false => format!("{value:.digits$}"),
        };
        let [least, median, most] = [self.least, self.median, self.most].map(number);
        if self.least == self.most {
            return median;
        }
        format!("{median} ({least} to {most})")
    }
}
