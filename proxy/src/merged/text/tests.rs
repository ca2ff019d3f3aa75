//! Which lines a scraper can read, in either format.

use super::*;

fn read(line: &str, format: Format, quoted: bool) -> Result<Option<&str>, &'static str> {
    Line::read(line, format, quoted).map(|line| line.name())
}

#[test]
fn a_line_is_read_as_strictly_as_prometheus_reads_it() {
    // The line, and what it is about in Prometheus' format and in OpenMetrics; `None`: it cannot be read.
    let rows = [
        ("a 1", Some("a"), Some("a")),
        ("a:b_c1 +Inf", Some("a:b_c1"), Some("a:b_c1")),
        ("a NaN", Some("a"), Some("a")),
        ("a 1.5e-3", Some("a"), Some("a")),
        ("a{} 1", Some("a"), Some("a")),
        ("a{b=\"c\",d=\"e\"} 1", Some("a"), Some("a")),
        ("a{b=\"}# \\\"\\\\\"} 1", Some("a"), Some("a")),
        ("a{b=\"c\"}1", Some("a"), None),
        ("a{b=\"c\",} 1", Some("a"), None),
        ("a { b = \"c\" , d=\"e\" }  1", Some("a"), None),
        ("\ta\t1 ", Some("a"), None),
        ("a  1", Some("a"), None),
        ("a 1 1700000000000", Some("a"), Some("a")),
        ("a 1 1700000000.5", None, Some("a")),
        (
            "a_total 1 # {trace=\"x\"} 0.5 1700000000.5",
            None,
            Some("a_total"),
        ),
        ("a_total 1 1.5 # {} 0.5", None, Some("a_total")),
        ("a_total 1 # x", None, None),
        ("a_total 1 # {} ", None, None),
        ("# HELP a Some words", Some("a"), Some("a")),
        ("# HELP a", Some("a"), None),
        ("# TYPE a gauge", Some("a"), Some("a")),
        ("#\tTYPE  a\tgauge ", Some("a"), None),
        ("# TYPE a untyped", Some("a"), None),
        ("# TYPE a unknown", None, Some("a")),
        ("# TYPE a", None, None),
        ("# TYPE 1a gauge", None, None),
        ("# UNIT a_seconds seconds", Some(""), Some("a_seconds")),
        ("# UNIT a seconds", Some(""), None),
        ("# anything", Some(""), None),
        ("#HELP", Some(""), None),
        ("# EOF", Some(""), None),
        ("", Some(""), None),
        ("a", None, None),
        ("a ", None, None),
        ("a one", None, None),
        ("a 0x1f", None, None),
        ("a 1\r", None, None),
        ("a 1 2 3", None, None),
        ("1a 1", None, None),
        ("-", None, None),
        ("a{b=\"c} 1", None, None),
        ("a{b=\"c\"", None, None),
        ("a{b=c} 1", None, None),
        ("a{b} 1", None, None),
        ("a{b=\"c\" d=\"e\"} 1", None, None),
        ("a{,} 1", None, None),
        ("a{b:c=\"d\"} 1", None, None),
        ("{\"a.b\"} 1", None, None),
        ("a\u{0} 1", None, None),
        ("é 1", None, None),
    ];
    for (line, text, open) in rows {
        for (format, expected) in [(Format::Text, text), (Format::OpenMetrics, open)] {
            let found = read(line, format, false)
                .map(Option::unwrap_or_default)
                .ok();
            assert_eq!(found, expected, "{line:?} as {format:?}");
        }
    }
}

#[test]
fn names_are_quoted_only_where_both_have_agreed_to_it() {
    for (line, expected) in [
        ("{\"a.b\",c=\"d\"} 1", Some("a.b")),
        ("{c=\"d\",\"a.b\"} 1", Some("a.b")),
        ("a{\"c.d\"=\"e\"} 1", Some("a")),
        ("# TYPE \"a.b\" gauge", Some("a.b")),
        ("{c=\"d\"} 1", None),
        ("a{\"a.b\"} 1", None),
        ("{\"a.b\",\"c.d\"} 1", None),
    ] {
        for format in [Format::Text, Format::OpenMetrics] {
            assert_eq!(
                read(line, format, true).ok().flatten(),
                expected,
                "{line:?}"
            );
            assert!(read(line, format, false).is_err(), "{line:?}");
        }
    }
}

#[test]
fn the_sidecars_part_means_the_same_in_both_formats() {
    let open = "# HELP a Of \\\"all\\\".\n# TYPE a counter\n# UNIT a_seconds seconds\na_total{b=\"c # {\"} 1 5.5 # {d=\"e\"} 1\n\
        # HELP f What.\n# TYPE f info\nf_info{v=\"1\"} 1\n# TYPE g unknown\ng 2\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\n# EOF\n";
    let text = "# HELP a_total Of \"all\".\n# TYPE a_total counter\na_total{b=\"c # {\"} 1\n\
        # HELP f_info What.\n# TYPE f_info gauge\nf_info{v=\"1\"} 1\n# TYPE g untyped\ng 2\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\n";
    assert_eq!(to_text(open), text);
    assert!(names(text, Format::Text, false).is_ok());
}

#[test]
fn only_an_end_at_the_end_is_one() {
    for (body, expected) in [
        ("a 1\n# EOF\n", "a 1\n"),
        ("a 1\n# EOF", "a 1\n"),
        ("# EOF\n", ""),
        ("a 1\n", "a 1\n"),
        ("a 1\n# HELP b # EOF\n", "a 1\n# HELP b # EOF\n"),
        ("a 1\n# EOF\nb 1\n", "a 1\n# EOF\nb 1\n"),
    ] {
        assert_eq!(without_end(body), expected);
    }
}
