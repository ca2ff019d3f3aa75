//! PEM text out (pki-types reads it), without leaving copies of secrets behind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroize as _;

const LINE_BYTES: usize = 48;
const LINE_CHARS: usize = 64;

/// Appends one PEM section; grows `out` at most once, so a secret has no stale copies if `out` is zeroized.
pub(crate) fn encode_into(out: &mut String, label: &str, der: &[u8]) {
    out.reserve(2 * label.len() + 40 + der.len().div_ceil(LINE_BYTES) * (LINE_CHARS + 1));
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut line = [0; LINE_CHARS];
    for chunk in der.chunks(LINE_BYTES) {
        let length = STANDARD
            .encode_slice(chunk, &mut line)
            .expect("48 bytes are 64 characters");
        out.push_str(std::str::from_utf8(&line[..length]).expect("base64 is ASCII"));
        out.push('\n');
    }
    line.zeroize();
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}

/// One certificate as PEM.
pub(crate) fn certificate(der: &CertificateDer<'_>) -> String {
    let mut out = String::new();
    encode_into(&mut out, "CERTIFICATE", der);
    out
}

/// Certificates as PEM, one after the other.
pub(crate) fn certificates(ders: &[CertificateDer<'_>]) -> String {
    ders.iter().map(certificate).collect()
}
