//! Quantities of compute resources, in Kubernetes' notation: what the API server takes, less signs.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>

/// Most digits after the point.
const FRACTION: usize = 9;

/// Thousandths of a processor: `2`, `0.5` or `250m`; what is left over counts as one more.
#[must_use]
pub fn cpu(text: &str) -> Option<u64> {
    read(text, 1_000)
}

/// Bytes: `67108864`, `64Mi`, `1.5Gi`, `64M` or `64e6`; what is left over counts as one more.
#[must_use]
pub fn memory(text: &str) -> Option<u64> {
    read(text, 1)
}

/// A number with its suffix, in parts of which one has so many.
fn read(text: &str, parts: u64) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > FRACTION {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, exponent) = unit(suffix)?;
    let value = digits.checked_mul(times)?.checked_mul(u128::from(parts))?;
    let exponent = exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    let value = match exponent {
        0.. => value.checked_mul(power)?,
        _ => value.div_ceil(power),
    };
    u64::try_from(value).ok()
}

/// What a suffix multiplies by, and a power of ten.
fn unit(suffix: &str) -> Option<(u128, i32)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    if let Some(index) = BINARY.iter().position(|it| *it == suffix) {
        return Some((1 << (10 * (index + 1)), 0));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(it, _)| *it == suffix) {
        return Some((1, *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-FURTHEST..=FURTHEST)
        .contains(&exponent)
        .then_some((1, exponent))
}

/// No exponent is of use beyond that.
const FURTHEST: i32 = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("2", Some(2_000)),
            ("250m", Some(250)),
            ("0.5", Some(500)),
            ("0.0001", Some(1)),
            ("0", Some(0)),
            ("", None),
            ("m", None),
            (".", None),
            ("+1", None),
            ("1,5", None),
            ("1.5m", Some(2)),
            ("1e3", Some(1_000_000)),
            ("5e-1", Some(500)),
            ("250000u", Some(250)),
            ("1e", None),
            ("1e99", None),
            ("2 cores", None),
            ("99999999999999999999", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(cpu(text), expected, "{text:?}");
        }
    }

    #[test]
    fn memory_is_read_as_kubernetes_reads_it() {
        for (text, expected) in [
            ("67108864", Some(64 << 20)),
            ("64Mi", Some(64 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("64M", Some(64_000_000)),
            ("1k", Some(1_000)),
            ("1e8", Some(100_000_000)),
            ("100E6", Some(100_000_000)),
            ("1P", Some(1_000_000_000_000_000)),
            ("1Pi", Some(1 << 50)),
            ("1000m", Some(1)),
            ("64MB", None),
            ("64mi", None),
            ("-64Mi", None),
            ("Mi", None),
            ("0.1234567890Gi", None),
            ("20000000Ti", None),
        ] {
            assert_eq!(memory(text), expected, "{text:?}");
        }
    }
}
