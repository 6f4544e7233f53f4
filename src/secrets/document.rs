//! Edits the text of `secrets.toml`: what changes is replaced, comments and the order of everything else stay.
//!
//! PURE. Never: a value of a secret; it sees versions, digests and grants.

use jiff::Timestamp;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use crate::fleet::selector::Selector;
use crate::name::{NodeName, SecretName};

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("secrets.toml is no TOML")]
    Syntax(#[source] toml_edit::TomlError),
    #[error("`{key}` in secrets.toml is no table")]
    NotATable { key: String },
    #[error("{text:?} is no selector ({why}); write it as in '{{ cluster = \"redis\" }}'")]
    Grant { text: String, why: String },
}

/// A selector as a person wrote it, to stand in the file in the same words.
#[derive(Clone, Debug)]
pub struct Grant {
    pub selector: Selector,
    value: Value,
}

impl Grant {
    /// `{ cluster = "redis" }`, `[{ .. }, { .. }]`, `"all"`; the last one without quotes too.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        #[derive(serde::Deserialize)]
        struct Line {
            grant: Selector,
        }
        let text = text.trim();
        let text = if text == "all" { "\"all\"" } else { text };
        let wrong = |why: &str| DocumentError::Grant { text: text.to_owned(), why: why.trim().to_owned() };
        let value: Value = text.parse().map_err(|error: toml_edit::TomlError| wrong(error.message()))?;
        let line: Line = toml::from_str(&format!("grant = {value}")).map_err(|error| wrong(error.message()))?;
        Ok(Self { selector: line.grant, value })
    }

    /// `[{ nodes = ["kafka01"] }]`
    pub fn to_node(node: &NodeName) -> Self {
        let mut table = InlineTable::new();
        table.insert("nodes", Array::from_iter([node.as_str()]).into());
        Self { selector: Selector::Nodes(vec![node.clone()]), value: Array::from_iter([table]).into() }
    }
}

/// What is known of a secret once it is encrypted.
#[derive(Clone, Copy)]
pub struct Sealed<'a> {
    pub version: u64,
    /// Hex SHA-256 of the .age file.
    pub sha256: &'a str,
    /// Digest of the recipients that it is encrypted to.
    pub recipients: &'a str,
    /// `None`: as it is.
    pub grant: Option<&'a Grant>,
    /// When the certificate in it expires. `None`: there is none in it.
    pub expires: Option<Timestamp>,
}

/// The text with this secret's entry as said; a new entry goes to the end.
pub fn set(text: &str, name: &SecretName, sealed: Sealed<'_>) -> Result<String, DocumentError> {
    let mut document: DocumentMut = text.parse().map_err(DocumentError::Syntax)?;
    let entry = entry(&mut document, name)?;
    put(entry, "version", i64::try_from(sealed.version).unwrap_or(i64::MAX).into());
    put(entry, "sha256", sealed.sha256.into());
    if let Some(grant) = sealed.grant {
        put(entry, "grant", grant.value.clone());
    }
    put(entry, "recipients", sealed.recipients.into());
    match sealed.expires {
        Some(at) => put(entry, "expires", at.to_string().into()),
        None => drop(entry.remove("expires")),
    }
    Ok(document.to_string())
}

/// The text with an entry that says how the secret is made and who may read it (`None`: as it is); of its value nothing.
pub fn declare(
    text: &str,
    name: &SecretName,
    grant: Option<&Grant>,
    shape: Option<Value>,
) -> Result<String, DocumentError> {
    let mut document: DocumentMut = text.parse().map_err(DocumentError::Syntax)?;
    let entry = entry(&mut document, name)?;
    if let Some(grant) = grant {
        put(entry, "grant", grant.value.clone());
    }
    match shape {
        Some(shape) => put(entry, "generate", shape),
        None => drop(entry.remove("generate")),
    }
    Ok(document.to_string())
}

/// The entry with this name; a new one goes to the end.
fn entry<'d>(document: &'d mut DocumentMut, name: &SecretName) -> Result<&'d mut dyn TableLike, DocumentError> {
    let secrets = document.entry("secrets").or_insert_with(|| {
        let mut secrets = Table::new();
        secrets.set_implicit(true);
        Item::Table(secrets)
    });
    let by_header = secrets.as_table().is_some_and(|table| !table.is_dotted());
    let secrets = table(secrets, "secrets")?;
    if !secrets.contains_key(name.as_str()) {
        let fresh = if by_header { Item::Table(Table::new()) } else { Item::Value(InlineTable::new().into()) };
        secrets.insert(name.as_str(), fresh);
    }
    let entry = secrets.get_mut(name.as_str()).expect("inserted above if it was not there");
    table(entry, &format!("secrets.{name}"))
}

fn table<'d>(item: &'d mut Item, key: &str) -> Result<&'d mut dyn TableLike, DocumentError> {
    item.as_table_like_mut().ok_or_else(|| DocumentError::NotATable { key: key.to_owned() })
}

/// What stands around a value, a comment after it above all, is the value's own.
fn put(entry: &mut dyn TableLike, key: &str, mut value: Value) {
    match entry.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => drop(entry.insert(key, Item::Value(value))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\
#:schema ../../../schemas/secrets.json
# Who may read what.
operators = [
    \"age1a\", # alice
]

# The broker's own.
[secrets.kafka]
sha256 = \"old\"   # of the file
version = 3
grant = [{ cluster = \"kafka\" }] # and nobody else
recipients = \"old\"

[secrets.redis]
version = 1
sha256 = \"r\"
grant = \"all\"
recipients = \"r\"
# the end
";

    fn sealed(grant: Option<&Grant>) -> Sealed<'_> {
        Sealed { version: 4, sha256: "new", recipients: "set", grant, expires: None }
    }

    #[test]
    fn an_entry_changes_and_everything_around_it_stays() {
        let text = set(TEXT, &"kafka".into(), sealed(None)).unwrap();
        let expected = TEXT
            .replacen("sha256 = \"old\"   # of", "sha256 = \"new\"   # of", 1)
            .replacen("version = 3", "version = 4", 1)
            .replacen("recipients = \"old\"", "recipients = \"set\"", 1);
        assert_eq!(text, expected);
        let narrower = Grant::parse("{ nodes = [\"kafka01\"] }").unwrap();
        let text = set(TEXT, &"kafka".into(), sealed(Some(&narrower))).unwrap();
        assert!(text.contains("grant = { nodes = [\"kafka01\"] } # and nobody else"), "{text}");
    }

    #[test]
    fn a_new_entry_goes_to_the_end() {
        let grant = Grant::parse("[{ cluster = \"etcd\" }, { role = \"base\" }]").unwrap();
        let entry = "\n[secrets.new]\nversion = 4\nsha256 = \"new\"\n\
                     grant = [{ cluster = \"etcd\" }, { role = \"base\" }]\nrecipients = \"set\"\n";
        let text = set(TEXT, &"new".into(), sealed(Some(&grant))).unwrap();
        assert_eq!(text, TEXT.replace("# the end\n", "") + entry + "# the end\n");
        assert_eq!(set("", &"new".into(), sealed(Some(&grant))).unwrap(), entry.trim_start());
        for dense in ["secrets = { a = { version = 1 } }\n", "secrets.a.version = 1\n"] {
            let text = set(dense, &"new".into(), sealed(Some(&grant))).unwrap();
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(table["secrets"]["new"]["version"].as_integer(), Some(4), "{text}");
            assert_eq!(table["secrets"]["a"]["version"].as_integer(), Some(1), "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_said() {
        assert_eq!(Grant::parse(" all ").unwrap().selector, Selector::All);
        for wrong in ["", "redis", "{ cluster = 1 }", "{ clusters = \"x\" }", "{}", "\"all\"\nx = 1"] {
            let error = Grant::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("is no selector"), "{wrong:?}: {error}");
        }
        assert!(set("x = ", &"a".into(), sealed(None)).is_err());
        assert!(set("secrets = 1", &"a".into(), sealed(None)).is_err());
    }

    /// Pieces of files, in any order: more of them are nearly right than of any text.
    fn pieces() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "[secrets.kafka]\n",
            "[secrets.a]\n",
            "[secrets]\n",
            "secrets = {}\n",
            "secrets.a = { version = 1 }\n",
            "a = { version = 1, sha256 = 'x' } # why\n",
            "version = 1\n",
            "sha256 = \"x\" # y\n",
            "grant = 'all'\n",
            "secrets.a.version = 1\n",
            "operators = [\n  'o', # me\n]\n",
            "# c\n",
            "\n",
            "[secrets.b.generate]\n",
            "kind = 'tls'\n",
            "[[secrets]]\n",
            "secrets = 1\n",
            "recipients = 3 # z",
            "\r\n",
            "\u{feff}",
            "x = [",
        ]);
        prop::collection::vec(pieces, 0..9).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn only_the_entry_changes_whatever_the_file_is(text in pieces(), name in "[a-c]") {
            let grant = Grant::parse("all").unwrap();
            if let Ok(after) = set(&text, &name.as_str().into(), sealed(Some(&grant))) {
                let mut before: toml::Table = text.parse().unwrap();
                let mut after: toml::Table = after.parse().unwrap_or_else(|error| panic!("{error}: {text:?} became {after:?}"));
                let of = |table: &mut toml::Table| {
                    table.get_mut("secrets").and_then(toml::Value::as_table_mut).and_then(|secrets| secrets.remove(&name))
                };
                let (_, entry) = (of(&mut before), of(&mut after).unwrap());
                prop_assert_eq!(entry["version"].as_integer(), Some(4));
                prop_assert_eq!(entry["grant"].as_str(), Some("all"));
                before.entry("secrets").or_insert_with(|| toml::Table::new().into());
                prop_assert_eq!(before, after);
            }
        }
    }
}
