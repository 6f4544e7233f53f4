//! Quoting: a value as it must stand in the formats we write, so that no value can begin a line or a directive of its
//! own. What a format cannot hold is an error.
//!
//! PURE. Never: quotes the value in an error, it may be a secret's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tera::value::ValueKind;
use tera::{Error, Kwargs, State, Tera, TeraResult, Value};

use super::functions::is_placeholder;
use crate::secrets::pem::{self, Part};

pub fn register(tera: &mut Tera) {
    tera.register_filter("json", |value: &Value, _: Kwargs, _: &State<'_>| structured(value, Style::Json));
    tera.register_filter("yaml", |value: &Value, _: Kwargs, _: &State<'_>| structured(value, Style::Yaml));
    tera.register_filter("toml", |value: &Value, _: Kwargs, _: &State<'_>| structured(value, Style::Toml));
    tera.register_filter("ini", |value: &Value, _: Kwargs, _: &State<'_>| ini(&scalar(value, "ini")?));
    tera.register_filter("properties", |value: &Value, _: Kwargs, _: &State<'_>| {
        properties(&scalar(value, "properties")?)
    });
    tera.register_filter("xml", |value: &Value, _: Kwargs, _: &State<'_>| xml(&scalar(value, "xml")?));
    tera.register_filter("shell", |value: &Value, _: Kwargs, _: &State<'_>| shell(&scalar(value, "shell")?));
    tera.register_filter("pem", |value: &str, args: Kwargs, _: &State<'_>| pem(value, args.must_get::<&str>("part")?));
    // Tera's own goes through a hash map, whose order is another one in every process.
    tera.register_filter("group_by", group_by);
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Json,
    Yaml,
    Toml,
}

impl Style {
    fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Toml => "toml",
        }
    }
}

fn cannot(format: &str, what: &str) -> Error {
    Error::message(format!("`{format}` cannot hold {what}"))
}

/// On one line: JSON, YAML in its flow style, a TOML value.
fn structured(value: &Value, style: Style) -> TeraResult<String> {
    match value.kind() {
        ValueKind::String => Ok(quoted(value.as_str().unwrap_or_default())),
        ValueKind::Array => {
            let items = value.as_array().unwrap_or_default().iter().map(|item| structured(item, style));
            Ok(format!("[{}]", items.collect::<TeraResult<Vec<_>>>()?.join(", ")))
        }
        ValueKind::Map => {
            let between = if style == Style::Toml { " = " } else { ": " };
            let fields = value.as_map().into_iter().flatten().map(|(key, value)| {
                let key = quoted(&key.to_string());
                Ok(format!("{key}{between}{}", structured(value, style)?))
            });
            Ok(format!("{{{}}}", fields.collect::<TeraResult<Vec<_>>>()?.join(", ")))
        }
        ValueKind::F64 if !value.as_f64().is_some_and(f64::is_finite) => {
            Err(cannot(style.name(), "a number that is not finite"))
        }
        ValueKind::None if style == Style::Toml => Err(cannot("toml", "null")),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Undefined => Err(cannot(style.name(), "a value that does not exist")),
        ValueKind::Bytes => Err(cannot(style.name(), "bytes")),
        _ => Ok(value.to_string()),
    }
}

/// A string in double quotes that JSON, YAML and TOML read alike: what one of them would not take raw is escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

fn scalar(value: &Value, format: &str) -> TeraResult<String> {
    match value.kind() {
        ValueKind::Array | ValueKind::Map => Err(cannot(format, "a list or a table")),
        ValueKind::Bytes => Err(cannot(format, "bytes")),
        ValueKind::None => Err(cannot(format, "null")),
        ValueKind::Undefined => Err(cannot(format, "a value that does not exist")),
        _ => Ok(value.to_string()),
    }
}

/// INI has no quoting that all readers share: a value that one of them could take for something else is refused.
fn ini(text: &str) -> TeraResult<String> {
    let comment = |mark: char| {
        text.starts_with(mark) || text.contains(&format!(" {mark}")) || text.contains(&format!("\t{mark}"))
    };
    if text.chars().any(char::is_control) {
        Err(cannot("ini", "line breaks or control characters"))
    } else if text.trim() != text {
        Err(cannot("ini", "blanks at the beginning or end"))
    } else if text.ends_with('\\') {
        Err(cannot("ini", "a backslash at the end, it would join the next line"))
    } else if comment('#') || comment(';') {
        Err(cannot("ini", "the beginning of a comment"))
    } else {
        Ok(text.to_owned())
    }
}

/// The value side of a line as `java.util.Properties.load` reads it (Latin-1, hence the escapes).
fn properties(text: &str) -> TeraResult<String> {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' ' if at == 0 => out.push_str("\\ "),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    Ok(out)
}

fn xml(text: &str) -> TeraResult<String> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            _ if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                return Err(cannot("xml", "control characters"));
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// One word of a POSIX shell.
fn shell(text: &str) -> TeraResult<String> {
    if text.contains('\0') {
        return Err(cannot("shell", "a NUL character"));
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// One part of a PEM text: `key`, `certificate` or `chain`. A placeholder stands for every part of its secret.
fn pem(text: &str, part: &str) -> TeraResult<String> {
    let part = match part {
        "key" => Part::Key,
        "certificate" => Part::Certificate,
        "chain" => Part::Chain,
        _ => return Err(Error::message("`pem` has the parts \"key\", \"certificate\" and \"chain\"")),
    };
    if is_placeholder(text) {
        return Ok(text.to_owned());
    }
    pem::part(text, part).ok_or_else(|| Error::message(format!("`pem` finds no {part:?} in it").to_lowercase()))
}

fn group_by(values: &[Value], args: Kwargs, _: &State<'_>) -> TeraResult<BTreeMap<String, Vec<Value>>> {
    let attribute = args.must_get::<&str>("attribute")?;
    let mut groups: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for value in values {
        let key = value.get_from_path(attribute);
        let key = key.ok_or_else(|| Error::message(format!("not every element has `{attribute}`")))?;
        groups.entry(scalar(key, "group_by")?).or_default().push(value.clone());
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_takes_a_text_apart_and_leaves_a_placeholder_whole() {
        let block = |label: &str| format!("-----BEGIN {label}-----\nAA\n-----END {label}-----");
        let text = [block("CERTIFICATE"), block("PRIVATE KEY"), block("CERTIFICATE")].join("\n");
        assert_eq!(pem(&text, "key").unwrap(), block("PRIVATE KEY"));
        assert_eq!(pem(&text, "certificate").unwrap(), block("CERTIFICATE"));
        assert_eq!(pem(&text, "chain").unwrap(), block("CERTIFICATE"));
        assert_eq!(pem("«secret:tls-kafka01»", "key").unwrap(), "«secret:tls-kafka01»");
        for (text, part) in
            [("hunter2", "key"), ("hunter2", "chain"), (text.as_str(), "cert"), ("«secret:x» hunter2", "key")]
        {
            assert!(!pem(text, part).unwrap_err().to_string().contains("hunter2"));
        }
    }

    #[test]
    fn quoted_text_is_one_value_for_every_reader() {
        for text in ["plain", "a\"b\\c", "line\nnext = 1", "\u{7f}\u{85}\u{2028}\u{0}", "«secret:x»", "#{$x}: - &a *b"]
        {
            let value = structured(&Value::from(text), Style::Toml).unwrap();
            assert!(!value.contains('\n'));
            assert_eq!(serde_json::from_str::<String>(&value).unwrap(), text);
            let toml: toml::Table = toml::from_str(&format!("x = {value}\n")).unwrap();
            assert_eq!(toml["x"].as_str(), Some(text));
        }
    }

    #[test]
    fn tables_and_lists() {
        let value = Value::from(BTreeMap::from([("a", Value::from(vec![1, 2])), ("b", Value::from(1.0))]));
        assert_eq!(structured(&value, Style::Json).unwrap(), r#"{"a": [1, 2], "b": 1.0}"#);
        assert_eq!(structured(&value, Style::Toml).unwrap(), r#"{"a" = [1, 2], "b" = 1.0}"#);
        assert!(structured(&Value::from(f64::NAN), Style::Json).is_err());
        assert!(structured(&Value::none(), Style::Toml).is_err());
    }

    #[test]
    fn values_that_a_format_cannot_hold_are_refused() {
        for bad in ["a\nb", "a\rb", "x ; y", "# x", " x", "x ", "x\\", "a\0"] {
            assert!(ini(bad).is_err(), "{bad:?}");
        }
        assert_eq!(ini("C:\\x;y#z").unwrap(), "C:\\x;y#z");
        assert!(shell("a\0b").is_err());
        assert_eq!(shell("it's $HOME\n").unwrap(), "'it'\\''s $HOME\n'");
        assert!(xml("\u{1}").is_err());
        assert_eq!(xml("<a b='&'>\n").unwrap(), "&lt;a b=&#39;&amp;&#39;&gt;&#10;");
        assert_eq!(properties(" a=b\\\nnext=1ü😀").unwrap(), "\\ a=b\\\\\\nnext=1\\u00fc\\ud83d\\ude00");
    }
}
