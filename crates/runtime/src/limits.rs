//! How far a peer can make things grow, as whoever runs a sidecar decides.
//!
//! Names, readers and defaults in one place, because two programs must agree on them: the injector refuses a pod for a
//! value that its sidecar could not read. The defaults are generous: what moves is not ended, unless so little of it comes
//! that it only holds its place, and what stands still only after long enough for nobody to have meant it. Nothing here says
//! who a sidecar is or whom it trusts.

mod bounds;
mod http2;
mod interim;

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub use bounds::{Bounds, Patience};
pub use http2::{Http2, MAX_HEADER_LIST, Way};
pub use interim::{INTERIM_EVERY, InterimAllowance, MAX_INTERIM};

use crate::env::Env;
use crate::names::{annotations, variables};

/// Every variable that is read here.
pub const VARIABLES: [&str; 26] = [
    variables::MAX_CONNECTIONS,
    variables::MAX_REQUESTS,
    variables::MAX_HEAD,
    variables::MAX_FIELDS,
    variables::MAX_SUBSCRIPTIONS,
    variables::MAX_CONNECTING,
    variables::MAX_ADMIN_CONNECTIONS,
    variables::MAX_APP_METRICS,
    variables::MEMORY_LIMIT,
    variables::REQUEST_HEAD_TIMEOUT,
    variables::BODY_TIMEOUT,
    variables::BODY_RATE,
    variables::UNREAD_TIMEOUT,
    variables::FIRST_REQUEST_TIMEOUT,
    variables::IDLE_TIMEOUT,
    variables::TCP_IDLE_TIMEOUT,
    variables::FLUSH_TIMEOUT,
    variables::H2_MAX_STREAMS,
    variables::H2_MAX_HEADER_LIST,
    variables::H2_PENDING_RESETS,
    variables::H2_LOCAL_RESETS,
    variables::H2_GIVEN_UP,
    variables::H2_CONTROL_FRAMES,
    variables::H2_SEND_BUFFER,
    variables::H2_STREAM_WINDOW,
    variables::H2_CONNECTION_WINDOW,
];

/// Longest time that a limit may be: what every clock and every socket option can count.
const LONGEST: Duration = Duration::from_secs(1_000 * 3_600);

/// All limits of a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How long peers may do nothing.
    pub patience: Patience,
    /// How much there may be at a time.
    pub bounds: Bounds,
    /// Limits on HTTP/2.
    pub http2: Http2,
}

impl Limits {
    /// Reads them. What cannot be read has its default, and is an error at [`Env::finish`].
    #[must_use]
    pub fn from_env(env: &Env) -> Self {
        Self {
            patience: Patience::from_env(env),
            bounds: Bounds::from_env(env),
            http2: Http2::from_env(env),
        }
    }
}

/// The annotation by which a pod sets a variable: `limits.tulle.dev/max-head` for `TULLE_MAX_HEAD`.
#[must_use]
pub fn annotation(variable: &str) -> String {
    let name = variable.strip_prefix("TULLE_").unwrap_or(variable);
    let name = name.to_ascii_lowercase().replace('_', "-");
    format!("{}{name}", annotations::LIMITS)
}

/// The variable that an annotation sets.
#[must_use]
pub fn of_annotation(name: &str) -> Option<&'static str> {
    let mut all = VARIABLES.into_iter();
    all.find(|variable| annotation(variable) == name)
}

/// A time in which something must happen.
fn period(env: &Env, name: &str, default: Duration) -> Duration {
    const REMEDY: &str = "use a duration from 1ms to 1000h, such as 30s or 5m";
    let period = |text: &str| {
        let period = crate::env::parse_duration(text).ok();
        period.filter(|period| !period.is_zero() && *period <= LONGEST)
    };
    read(env, name, REMEDY, period).unwrap_or(default)
}

/// A number of something.
fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    env: &Env,
    name: &str,
    range: RangeInclusive<T>,
) -> Option<T> {
    let (least, most) = (range.start(), range.end());
    let remedy = format!("use a whole number from {least} to {most}");
    read(env, name, &remedy, |text| {
        text.parse().ok().filter(|number| range.contains(number))
    })
}

/// A number of bytes.
fn bytes(env: &Env, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
    let (least, most) = (range.start(), range.end());
    let remedy =
        format!("use a number of bytes from {least} to {most}, such as 65536, 64Ki or 1Mi");
    read(env, name, &remedy, |text| {
        parse_bytes(text).filter(|bytes| range.contains(bytes))
    })
}

fn read<T>(
    env: &Env,
    name: &str,
    remedy: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let read = parse(env.text(name)?);
    if read.is_none() {
        env.reject(name, remedy);
    }
    read
}

/// Reads a number of bytes as Kubernetes writes it: `67108864`, `64Mi` or `1Gi`.
fn parse_bytes(text: &str) -> Option<u64> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit: u64 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests;
