//! One line of metrics.

use super::Format;

/// What a line can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Help {
        name: &'a str,
        help: &'a str,
    },
    Kind {
        name: &'a str,
        kind: &'a str,
    },
    Unit {
        name: &'a str,
    },
    Sample {
        name: &'a str,
        series: &'a str,
        value: &'a str,
    },
    /// It is empty, or a comment.
    Nothing,
}

const KINDS: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];
const OPEN_KINDS: [&str; 8] = [
    "counter",
    "gauge",
    "histogram",
    "gaugehistogram",
    "summary",
    "info",
    "stateset",
    "unknown",
];

type Read<'a, T> = Result<(T, &'a str), &'static str>;

impl<'a> Line<'a> {
    /// Reads it; an error says what is wrong with it.
    pub(super) fn read(line: &'a str, format: Format, quoted: bool) -> Result<Self, &'static str> {
        if line.contains('\0') {
            return Err("a NUL");
        }
        match format {
            Format::OpenMetrics => match line.strip_prefix("# ") {
                Some(about) => open_about(about, quoted),
                None => sample(line, format, quoted),
            },
            Format::Text => {
                let line = line.trim_start_matches([' ', '\t']);
                match line.strip_prefix('#') {
                    Some(comment) => about(comment, quoted),
                    None if line.is_empty() => Ok(Self::Nothing),
                    None => sample(line, format, quoted),
                }
            }
        }
    }

    /// What it is about.
    pub(super) fn name(&self) -> Option<&'a str> {
        match self {
            Self::Help { name, .. }
            | Self::Kind { name, .. }
            | Self::Unit { name }
            | Self::Sample { name, .. } => Some(name),
            Self::Nothing => None,
        }
    }
}

/// A comment of Prometheus' format: anything, unless it begins as one that means something.
fn about(comment: &str, quoted: bool) -> Result<Line<'_>, &'static str> {
    let spaced = comment.trim_start_matches([' ', '\t']);
    let after = |word| {
        let rest = spaced
            .strip_prefix(word)
            .filter(|_| spaced.len() < comment.len())?;
        rest.starts_with([' ', '\t'])
            .then(|| rest.trim_start_matches([' ', '\t']))
    };
    if let Some(rest) = after("HELP") {
        let (name, help) = family(rest, quoted)?;
        let help = help.trim_start_matches([' ', '\t']);
        return Ok(Line::Help { name, help });
    }
    let Some(rest) = after("TYPE") else {
        return Ok(Line::Nothing);
    };
    let (name, kind) = family(rest, quoted)?;
    let kind = kind.trim_matches([' ', '\t']);
    if KINDS.contains(&kind) {
        Ok(Line::Kind { name, kind })
    } else {
        Err("a type that there is not")
    }
}

/// What follows `# ` in OpenMetrics.
fn open_about(about: &str, quoted: bool) -> Result<Line<'_>, &'static str> {
    let (word, rest) = about.split_once(' ').ok_or("a comment")?;
    let (name, said) = family(rest, quoted)?;
    let said = said.strip_prefix(' ').ok_or("no space after a name")?;
    match word {
        "HELP" => Ok(Line::Help { name, help: said }),
        "TYPE" if OPEN_KINDS.contains(&said) => Ok(Line::Kind { name, kind: said }),
        "TYPE" => Err("a type that there is not"),
        "UNIT" if said.is_empty() => Ok(Line::Unit { name }),
        "UNIT" => {
            let rest = name
                .strip_suffix(said)
                .and_then(|rest| rest.strip_suffix('_'));
            rest.map(|_| Line::Unit { name })
                .ok_or("a unit that is not in the name")
        }
        _ => Err("a comment"),
    }
}

/// A name at the beginning, quoted or not.
fn family(text: &str, quoted: bool) -> Read<'_, &str> {
    if quoted && text.starts_with('"') {
        return string(text);
    }
    name(text, true)
}

/// A name of a metric, or, without colons, of a label.
fn name(text: &str, colons: bool) -> Read<'_, &str> {
    let is_in = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    let (name, rest) = text.split_at(text.find(|c| !is_in(c)).unwrap_or(text.len()));
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("no name");
    }
    Ok((name, rest))
}

/// What is between quotation marks, as it stands there.
fn string(text: &str) -> Read<'_, &str> {
    let inside = text.strip_prefix('"').ok_or("no quotation mark")?;
    let mut escaped = false;
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Ok((&inside[..at], &inside[at + 1..])),
            _ => {}
        }
    }
    Err("a quotation mark that is not closed")
}

/// The rest of a line that is being read.
struct Cursor<'a> {
    rest: &'a str,
    format: Format,
    quoted: bool,
}

impl<'a> Cursor<'a> {
    /// Passes blanks where Prometheus' format may have them and OpenMetrics has none; says whether there were any.
    fn skip(&mut self) -> bool {
        let before = self.rest.len();
        if self.format == Format::Text {
            self.rest = self.rest.trim_start_matches([' ', '\t']);
        }
        self.rest.len() < before
    }

    /// Passes what separates words.
    fn separator(&mut self) -> bool {
        match self.format {
            Format::Text => self.skip(),
            Format::OpenMetrics => self.eat(" "),
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take(&mut self, read: Read<'a, &'a str>) -> Result<&'a str, &'static str> {
        let (taken, rest) = read?;
        self.rest = rest;
        Ok(taken)
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find([' ', '\t']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn number(&mut self) -> Result<&'a str, &'static str> {
        let word = self.word();
        let number = word.parse::<f64>();
        number
            .map(|_| word)
            .map_err(|_| "a value that is no number")
    }

    /// Labels in braces, and the name, if that is quoted among them.
    fn labels(&mut self) -> Result<Option<&'a str>, &'static str> {
        let mut named = None;
        self.eat("{");
        self.skip();
        while !self.eat("}") {
            let quoted = self.quoted && self.rest.starts_with('"');
            let label = if quoted {
                string(self.rest)
            } else {
                name(self.rest, false)
            };
            let label = self.take(label)?;
            self.skip();
            if self.eat("=") {
                self.skip();
                self.take(string(self.rest))?;
            } else if !quoted || named.replace(label).is_some() {
                return Err("a label without a value");
            }
            self.skip();
            let more = self.eat(",");
            self.skip();
            let closed = self.rest.starts_with('}');
            // Behind the last one Prometheus' format may have a comma.
            if more == closed && !(more && self.format == Format::Text) {
                return Err("labels that do not end");
            }
        }
        Ok(named)
    }

    /// What OpenMetrics has behind a value: a time, an exemplar, or both.
    fn open_rest(&mut self) -> Result<(), &'static str> {
        if self.rest.is_empty() {
            return Ok(());
        }
        if !self.rest.starts_with(" # {") {
            self.separator();
            self.number()?;
        }
        if self.eat(" # ") {
            if !self.rest.starts_with('{') || self.labels()?.is_some() || !self.separator() {
                return Err("no exemplar");
            }
            self.number()?;
            if self.separator() {
                self.number()?;
            }
        }
        Ok(())
    }

    /// What Prometheus' format has behind a value: a time.
    fn text_rest(&mut self) -> Result<(), &'static str> {
        self.skip();
        if !self.word().bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("a time that is no number");
        }
        self.skip();
        Ok(())
    }
}

fn sample(line: &str, format: Format, quoted: bool) -> Result<Line<'_>, &'static str> {
    let mut at = Cursor {
        rest: line,
        format,
        quoted,
    };
    let mut named = None;
    if !quoted || !line.starts_with('{') {
        named = Some(at.take(name(line, true))?);
    }
    let mut apart = at.skip();
    if at.rest.starts_with('{') {
        let inside = at.labels()?;
        if named.is_some() == inside.is_some() {
            return Err("not one name");
        }
        named = named.or(inside);
        // Prometheus' format needs no blank there.
        apart = format == Format::Text;
    }
    let series = line[..line.len() - at.rest.len()].trim_end_matches([' ', '\t']);
    if !(at.separator() || apart) {
        return Err("no value");
    }
    let value = at.number()?;
    match format {
        Format::OpenMetrics => at.open_rest()?,
        Format::Text => at.text_rest()?,
    }
    if !at.rest.is_empty() {
        return Err("something behind the value");
    }
    let name = named.ok_or("no name")?;
    Ok(Line::Sample {
        name,
        series,
        value,
    })
}
