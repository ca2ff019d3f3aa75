//! The environment, typed.
//!
//! A program reads everything it wants first and hears about everything that is wrong at once: [`Env::finish`] names
//! each bad variable with its value and the reason. An empty value counts as unset, as Kubernetes' downward API and
//! templates produce it. Nothing else in Tulle reads the process's environment.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::Duration;

use parking_lot::Mutex;

/// Variables, and what was found wrong with them so far.
#[derive(Debug)]
pub struct Env {
    variables: HashMap<String, String>,
    problems: Mutex<Vec<Problem>>,
}

/// Everything that was wrong with the environment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct EnvErrors(Vec<Problem>);

#[derive(Debug, PartialEq, Eq)]
struct Problem {
    name: String,
    value: Option<String>,
    reason: String,
}

impl Env {
    /// The environment of this process. Variables that are not UTF-8 are left out.
    #[must_use]
    pub fn process() -> Self {
        let utf8 = std::env::vars_os()
            .filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
        Self::from_pairs(utf8)
    }

    /// The given variables: for tests, and for programs that are started in-process.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let variables = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Self {
            variables,
            problems: Mutex::default(),
        }
    }

    /// The value of a variable as text, if it is set.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The value of a variable, if it is set. One that does not parse is remembered for [`Env::finish`].
    pub fn get<T: FromStr<Err: Display>>(&self, name: &str) -> Option<T> {
        self.parse(name, |value| {
            value.parse().map_err(|error: T::Err| error.to_string())
        })
    }

    /// The value of a variable that must be set. `None` means that [`Env::finish`] will fail.
    pub fn required<T: FromStr<Err: Display>>(&self, name: &str) -> Option<T> {
        if self.text(name).is_none() {
            self.reject(name, "it is required; set it");
        }
        self.get(name)
    }

    /// A duration such as `250ms`, `25s`, `10m` or `24h`, if the variable is set.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.parse(name, parse_duration)
    }

    /// A comma-separated list; empty if the variable is not set. Blanks around the items are ignored.
    pub fn list<T: FromStr<Err: Display>>(&self, name: &str) -> Vec<T> {
        let parse = |value: &str| {
            value
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| {
                    item.parse()
                        .map_err(|error: T::Err| format!("{item:?}: {error}"))
                })
                .collect()
        };
        self.parse(name, parse).unwrap_or_default()
    }

    /// Remembers that a variable is wrong in a way that only the caller can see.
    pub fn reject(&self, name: &str, reason: impl Display) {
        let value = self.text(name).map(str::to_owned);
        self.problems.lock().push(Problem {
            name: name.to_owned(),
            value,
            reason: reason.to_string(),
        });
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// If any variable was missing or did not parse; the error names them all.
    pub fn finish(self) -> Result<(), EnvErrors> {
        let problems = self.problems.into_inner();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(EnvErrors(problems))
        }
    }

    /// Ends the reading with what was read: `build` may use `?` on required values.
    ///
    /// # Errors
    /// As [`Env::finish`].
    pub fn finish_with<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, EnvErrors> {
        self.finish()?;
        build().ok_or_else(|| EnvErrors(Vec::new()))
    }

    fn parse<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(self.text(name)?)
            .map_err(|reason| self.reject(name, reason))
            .ok()
    }
}

impl EnvErrors {
    /// Each variable that was wrong, and why.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        let problems = self.0.iter();
        problems.map(|problem| (problem.name.as_str(), problem.reason.as_str()))
    }
}

impl Display for EnvErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad environment")?;
        for (
            index,
            Problem {
                name,
                value,
                reason,
            },
        ) in self.0.iter().enumerate()
        {
            f.write_str(if index == 0 { ": " } else { "; " })?;
            match value {
                Some(value) => write!(f, "{name}={value:?}: {reason}")?,
                None => write!(f, "{name} is not set: {reason}")?,
            }
        }
        Ok(())
    }
}

/// Whether the user asked programs not to colour their output (no-color.org).
#[must_use]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Reads a duration such as `250ms`, `25s`, `10m` or `24h`.
///
/// # Errors
/// If it is not a whole number followed by one of these units.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let milliseconds_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => {
            return Err(
                "expected a whole number and a unit of ms, s, m or h, such as 25s".to_owned(),
            );
        }
    };
    let number: u64 = number
        .parse()
        .map_err(|error| format!("bad number {number:?}: {error}"))?;
    number
        .checked_mul(milliseconds_per_unit)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_values_are_read_and_unset_or_empty_ones_are_none() {
        let env = Env::from_pairs([
            ("PORT", "15000"),
            ("EMPTY", ""),
            ("WAIT", "25s"),
            ("PORTS", "1, 2,3"),
        ]);
        assert_eq!(env.get::<u16>("PORT"), Some(15000));
        assert_eq!(env.get::<u16>("EMPTY"), None);
        assert_eq!(env.get::<u16>("ABSENT"), None);
        assert_eq!(env.duration("WAIT"), Some(Duration::from_secs(25)));
        assert_eq!(env.list::<u16>("PORTS"), [1, 2, 3]);
        let port = env.required::<u16>("PORT");
        assert_eq!(env.finish_with(|| Some(port? + 1)), Ok(15001));
    }

    #[test]
    fn every_bad_variable_is_reported_with_name_value_and_reason() {
        let env = Env::from_pairs([("PORT", "eighty"), ("WAIT", "25"), ("LIST", "1,x")]);
        assert_eq!(env.get::<u16>("PORT"), None);
        assert_eq!(env.duration("WAIT"), None);
        assert!(env.list::<u16>("LIST").is_empty());
        assert_eq!(env.required::<String>("POD_NAME"), None);
        let report = env.finish().expect_err("four are bad").to_string();
        for part in [
            "PORT=\"eighty\": invalid digit",
            "WAIT=\"25\": expected a whole number and a unit",
            "LIST=\"1,x\": \"x\": invalid digit",
            "POD_NAME is not set: it is required",
        ] {
            assert!(report.contains(part), "{report:?} lacks {part:?}");
        }
    }

    #[test]
    fn durations() {
        let table = [
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("25s", Some(25_000)),
            ("10m", Some(600_000)),
            ("24h", Some(86_400_000)),
            ("", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_duration(text).ok(),
                expected.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }
}
