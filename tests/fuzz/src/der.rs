//! DER, just enough to write what no library would and to look at what libraries made.

/// Tag of a SEQUENCE.
pub const SEQUENCE: u8 = 0x30;

/// One element.
#[must_use]
pub fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let bytes = (long as u32).to_be_bytes();
            let skip = bytes.iter().take_while(|byte| **byte == 0).count();
            out.push(0x80 | (4 - skip) as u8);
            out.extend_from_slice(&bytes[skip..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// One element around others.
#[must_use]
pub fn nested(tag: u8, elements: &[&[u8]]) -> Vec<u8> {
    element(tag, &elements.concat())
}

/// Tag and content of each element, if these are well-formed elements to the last byte.
#[must_use]
pub fn elements(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while let [tag, rest @ ..] = bytes {
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            short @ 0..=0x7f => (usize::from(*short), rest),
            long => {
                let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                let fold = |length: usize, digit: &u8| {
                    length.checked_mul(256)?.checked_add(usize::from(*digit))
                };
                (digits.iter().try_fold(0, fold)?, rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        all.push((*tag, content));
        bytes = rest;
    }
    Some(all)
}

/// PEM of one section.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
