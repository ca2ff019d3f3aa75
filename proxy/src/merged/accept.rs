//! What a scraper can read, and what the app is asked for on its behalf.
//!
//! Only the two formats of lines can be merged. What the scraper says of them goes to the app as it is said, for it may
//! be about versions and the escaping of names; of others, such as protobuf, nothing does.

use http::{HeaderMap, HeaderValue, header};

use super::text::Format;

/// What the app is asked for on behalf of whoever takes anything.
const ANY: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

/// What can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    open_metrics: bool,
    text: bool,
    /// What the app is asked for.
    pub(super) accept: HeaderValue,
}

impl Wanted {
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter();
        let values = values.filter_map(|value| value.to_str().ok());
        let (mut open_metrics, mut text, mut any) = (false, false, false);
        let mut said = Vec::new();
        for range in values.flat_map(|value| value.split(',')).map(str::trim) {
            let mut parts = range.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
            if parts.any(is_refusal) {
                continue;
            }
            match essence.as_str() {
                "application/openmetrics-text" => open_metrics = true,
                "text/plain" | "text/*" => text = true,
                "*/*" | "application/*" => {
                    any = true;
                    continue;
                }
                _ => continue,
            }
            said.push(range);
        }
        let accept = HeaderValue::try_from(said.join(",")).ok();
        let accept = accept.filter(|accept| !accept.is_empty());
        let any = any || accept.is_none();
        Self {
            open_metrics: open_metrics || any,
            text: text || any,
            accept: accept.unwrap_or(HeaderValue::from_static(ANY)),
        }
    }

    pub(super) fn takes(&self, format: Format) -> bool {
        match format {
            Format::OpenMetrics => self.open_metrics,
            Format::Text => self.text,
        }
    }

    /// The format of the sidecar's part where it is alone: its own, if that can be.
    pub(super) fn preferred(&self) -> Format {
        if self.open_metrics {
            Format::OpenMetrics
        } else {
            Format::Text
        }
    }
}

/// Whether a parameter says that the type is not wanted.
fn is_refusal(parameter: &str) -> bool {
    let weight = parameter
        .split_once('=')
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    weight.is_some_and(|(_, weight)| weight.trim().parse() == Ok(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(accept: Option<&str>) -> (bool, bool, String) {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, HeaderValue::try_from(accept).unwrap());
        }
        let wanted = Wanted::read(&headers);
        let (open, text) = (Format::OpenMetrics, Format::Text);
        let accept = wanted.accept.to_str().unwrap().to_owned();
        (wanted.takes(open), wanted.takes(text), accept)
    }

    #[test]
    fn the_app_is_asked_for_what_the_client_reads_and_can_be_merged() {
        let prometheus = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
            application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let of_lines = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3";
        let protobuf = "application/vnd.google.protobuf;encoding=delimited";
        let open = "application/openmetrics-text; version=1.0.0";
        let rows = [
            ("Prometheus", Some(prometheus), (true, true, of_lines)),
            ("nothing said", None, (true, true, ANY)),
            ("anything", Some("*/*"), (true, true, ANY)),
            (
                "text alone",
                Some("text/plain"),
                (false, true, "text/plain"),
            ),
            ("OpenMetrics alone", Some(open), (true, false, open)),
            (
                "one of them refused",
                Some("text/plain;q=1, application/openmetrics-text;q=0"),
                (false, true, "text/plain;q=1"),
            ),
            // It has to be answered something, and always was.
            ("none that there is", Some(protobuf), (true, true, ANY)),
        ];
        for (name, accept, (open, text, asked)) in rows {
            assert_eq!(read(accept), (open, text, asked.to_owned()), "{name}");
        }
    }
}
