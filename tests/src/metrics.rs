//! What a sidecar measures, as a scrape sees it.

/// One scrape.
#[derive(Debug, Clone)]
pub struct Metrics(String);

impl Metrics {
    /// A scrape in Prometheus' text format.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Sum of the samples of that name which carry all these labels.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |set: &str| {
            labels.iter().all(|(label, value)| {
                let pair = format!("{label}=\"{value}\"");
                set.split_inclusive("\",")
                    .any(|found| found.trim_end_matches(',') == pair)
            })
        };
        let samples = self.0.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, set) = series.split_once('{').unwrap_or((series, "}"));
                let wanted = found == name && carries(set.trim_end_matches('}'));
                wanted.then(|| value.parse::<f64>().ok()).flatten()
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics = Metrics::new(
            "# HELP a b\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"3\"} 4\na_total{x=\"11\",y=\"2\"} 5\nb 6\n",
        );
        assert_eq!(metrics.sum("a_total", &[("x", "1")]), 7.0);
        assert_eq!(metrics.sum("a_total", &[("x", "1"), ("y", "2")]), 3.0);
        assert_eq!(metrics.sum("a_total", &[]), 12.0);
        assert_eq!(metrics.sum("b", &[]), 6.0);
        assert_eq!(metrics.sum("c", &[]), 0.0);
    }
}
