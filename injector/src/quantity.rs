//! Quantities of compute resources, in Kubernetes' notation: what the API server takes, less exponents and signs.

/// Thousandths of a processor: `2`, `0.5` or `250m`.
#[must_use]
pub fn cpu(text: &str) -> Option<u64> {
    match text.strip_suffix('m') {
        Some(thousandths) => whole(thousandths),
        None => scaled(text, 1_000),
    }
}

/// Bytes: `67108864`, `64Mi`, `1.5Gi` or `64M`.
#[must_use]
pub fn memory(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let mut units = UNITS.into_iter();
    let unit = units.find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let (number, bytes) = unit.unwrap_or((text, 1));
    scaled(number, bytes)
}

fn whole(digits: &str) -> Option<u64> {
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| digits.parse().ok()).flatten()
}

/// A decimal number of units, in parts of which a unit has `parts`; what is left over counts as one more, as in Kubernetes.
fn scaled(decimal: &str, parts: u64) -> Option<u64> {
    let Some((units, fraction)) = decimal.split_once('.') else {
        return whole(decimal)?.checked_mul(parts);
    };
    let digits = u32::try_from(fraction.len()).ok().filter(|it| *it <= 9)?;
    let of = 10_u64.pow(digits);
    let part = u128::from(whole(fraction)?) * u128::from(parts);
    let part = u64::try_from(part.div_ceil(u128::from(of))).ok()?;
    whole(units)?.checked_mul(parts)?.checked_add(part)
}

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
            ("1.5m", None),
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
