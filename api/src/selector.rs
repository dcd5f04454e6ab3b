//! Label and field selectors, in their text form (`app=web,tier in (a,b)`) and label selectors in their object form.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::names;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What a requirement asks of a key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    /// Also true if the key is absent.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    /// The value is an integer greater than this one.
    Gt(i64),
    Lt(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

/// A conjunction of requirements on labels. Empty: everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// Not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("unable to parse requirement: found '{found}', expected: {expected}")]
    Unexpected {
        found: String,
        expected: &'static str,
    },
    #[error("unable to parse requirement: {place}: Invalid value: {value:?}: {problem}")]
    Invalid {
        place: &'static str,
        value: String,
        problem: String,
    },
    #[error("{operator:?} is not a valid label selector operator")]
    Operator { operator: String },
    #[error("invalid selector: '{text}'; can't understand '{term}'")]
    Field { text: String, term: String },
}

impl LabelSelector {
    /// The selector that matches no labels: what an absent (null) object form means.
    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Parses the text form: `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a>1`, `a<1`, joined by commas.
    ///
    /// # Errors
    /// [`ParseError`] in upstream's words.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut lexer = Lexer { rest: text };
        let mut requirements = Vec::new();
        loop {
            match lexer.peek() {
                Token::End if requirements.is_empty() => break,
                Token::Word(_) | Token::Bang => requirements.push(requirement(&mut lexer)?),
                other => return Err(unexpected(&other, "!, identifier, or 'end of string'")),
            }
            match lexer.next() {
                Token::End => break,
                Token::Comma => match lexer.peek() {
                    Token::Word(_) | Token::Bang => {}
                    other => return Err(unexpected(&other, "identifier after ','")),
                },
                other => return Err(unexpected(&other, "',' or 'end of string'")),
            }
        }
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Reads the object form (`matchLabels`, `matchExpressions`). Null selects nothing, an empty object everything.
    ///
    /// # Errors
    /// [`ParseError::Operator`] for an unknown operator.
    pub fn from_object(object: &Value) -> Result<Self, ParseError> {
        if object.is_null() {
            return Ok(Self::nothing());
        }
        let mut selector = Self::from_map(&object["matchLabels"]);
        for expression in object["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = || {
                let values = expression["values"].as_array().into_iter().flatten();
                values
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect::<Vec<_>>()
            };
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                // Only node selector terms have these two; their value is one integer.
                "Gt" => Operator::Gt(
                    values()
                        .first()
                        .and_then(|v| v.parse().ok())
                        .unwrap_or(i64::MAX),
                ),
                "Lt" => Operator::Lt(
                    values()
                        .first()
                        .and_then(|v| v.parse().ok())
                        .unwrap_or(i64::MIN),
                ),
                other => {
                    return Err(ParseError::Operator {
                        operator: other.to_owned(),
                    });
                }
            };
            selector.requirements.push(Requirement { key, operator });
        }
        Ok(selector)
    }

    /// The selector of a plain map of labels, as Services and `nodeSelector` have it.
    pub fn from_map(map: &Value) -> Self {
        let pairs = map.as_object().into_iter().flatten();
        let requirements = pairs
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.as_str().unwrap_or_default().to_owned()]),
            })
            .collect();
        Self {
            requirements,
            nothing: false,
        }
    }

    /// Whether labels given as a lookup function satisfy every requirement.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether a JSON map of labels (null: none) satisfies the selector.
    pub fn matches_json(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => number().is_some_and(|n| n > *bound),
            Operator::Lt(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::Gt(bound) => write!(f, "{key}>{bound}")?,
                Operator::Lt(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    End,
    Comma,
    Open,
    Close,
    Bang,
    /// `=`, `==`, `!=`, `<`, `>`
    Relation(&'a str),
    Word(&'a str),
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::End => "",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::Bang => "!",
            Token::Relation(text) | Token::Word(text) => text,
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = self.rest.chars().next() else {
            return Token::End;
        };
        let length = match first {
            ',' | '(' | ')' => 1,
            '!' if !self.rest.starts_with("!=") => 1,
            '=' | '!' | '<' | '>' => {
                if self.rest[1..].starts_with('=') && first != '<' && first != '>' {
                    2
                } else {
                    1
                }
            }
            _ => self
                .rest
                .find([',', '(', ')', '!', '=', '<', '>', ' ', '\t', '\r', '\n'])
                .unwrap_or(self.rest.len()),
        };
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        match first {
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            '!' if length == 1 => Token::Bang,
            '=' | '!' | '<' | '>' => Token::Relation(text),
            _ => Token::Word(text),
        }
    }

    fn peek(&self) -> Token<'a> {
        Lexer { rest: self.rest }.next()
    }
}

fn unexpected(token: &Token<'_>, expected: &'static str) -> ParseError {
    ParseError::Unexpected {
        found: token.text().to_owned(),
        expected,
    }
}

fn requirement(lexer: &mut Lexer<'_>) -> Result<Requirement, ParseError> {
    let negated = lexer.peek() == Token::Bang;
    if negated {
        lexer.next();
    }
    let key = match lexer.next() {
        Token::Word(key) => key.to_owned(),
        other => return Err(unexpected(&other, "identifier")),
    };
    check("<nil>", &key, names::qualified_name)?;
    if negated {
        return Ok(Requirement {
            key,
            operator: Operator::DoesNotExist,
        });
    }
    if matches!(lexer.peek(), Token::End | Token::Comma) {
        return Ok(Requirement {
            key,
            operator: Operator::Exists,
        });
    }
    let operator = match lexer.next() {
        Token::Relation("=" | "==") => Operator::In(vec![exact_value(lexer)?]),
        Token::Relation("!=") => Operator::NotIn(vec![exact_value(lexer)?]),
        Token::Relation(">") => Operator::Gt(integer(lexer)?),
        Token::Relation("<") => Operator::Lt(integer(lexer)?),
        Token::Word("in") => Operator::In(values(lexer)?),
        Token::Word("notin") => Operator::NotIn(values(lexer)?),
        other => return Err(unexpected(&other, "in, notin, =, ==, !=, gt, lt")),
    };
    Ok(Requirement { key, operator })
}

fn check(
    place: &'static str,
    value: &str,
    rule: fn(&str) -> names::Problems,
) -> Result<(), ParseError> {
    let problems = rule(value);
    if problems.is_empty() {
        return Ok(());
    }
    Err(ParseError::Invalid {
        place,
        value: value.to_owned(),
        problem: problems.join("; "),
    })
}

fn exact_value(lexer: &mut Lexer<'_>) -> Result<String, ParseError> {
    match lexer.peek() {
        Token::End | Token::Comma => Ok(String::new()),
        Token::Word(_) => label_value(lexer),
        other => Err(unexpected(&other, "identifier")),
    }
}

fn label_value(lexer: &mut Lexer<'_>) -> Result<String, ParseError> {
    let token = lexer.next();
    check("values[0]", token.text(), names::label_value)?;
    Ok(token.text().to_owned())
}

fn integer(lexer: &mut Lexer<'_>) -> Result<i64, ParseError> {
    let value = exact_value(lexer)?;
    value.parse().map_err(|_| ParseError::Invalid {
        place: "values[0]",
        value,
        problem: "for 'Gt', 'Lt' operators, the value must be an integer".into(),
    })
}

fn values(lexer: &mut Lexer<'_>) -> Result<Vec<String>, ParseError> {
    match lexer.next() {
        Token::Open => {}
        other => return Err(unexpected(&other, "'('")),
    }
    let mut values = Vec::new();
    loop {
        // An empty place between commas is an empty value.
        match lexer.peek() {
            Token::Comma | Token::Close => values.push(String::new()),
            Token::Word(_) => values.push(label_value(lexer)?),
            other => return Err(unexpected(&other, "',', or identifier")),
        }
        match lexer.next() {
            Token::Comma => {}
            Token::Close => break,
            other => return Err(unexpected(&other, "',' or ')'")),
        }
    }
    values.sort();
    values.dedup();
    Ok(values)
}

/// A conjunction of `field=value`, `field==value` and `field!=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// The field must have the value (`=`), or must not (`!=`).
    pub equal: bool,
}

impl FieldSelector {
    /// Parses the text form. A backslash takes `,`, `=` and `\` in a value literally.
    ///
    /// # Errors
    /// [`ParseError::Field`] in upstream's words.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text).into_iter().filter(|t| !t.is_empty()) {
            let (field, rest, equal) = match (term.find('='), term.find("!=")) {
                (Some(at), Some(not)) if not + 1 == at => (&term[..not], &term[at + 1..], false),
                (Some(at), _) => (
                    &term[..at],
                    term[at + 1..].strip_prefix('=').unwrap_or(&term[at + 1..]),
                    true,
                ),
                (None, _) => {
                    return Err(ParseError::Field {
                        text: text.to_owned(),
                        term: term.to_owned(),
                    });
                }
            };
            terms.push(FieldTerm {
                field: field.to_owned(),
                value: unescape(rest),
                equal,
            });
        }
        Ok(Self { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value that a field is required to have, if there is one: a short cut for lookups by name or node.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }

    /// Whether an object with these selectable fields matches. A field that it doesn't have is empty.
    pub fn matches(&self, fields: &[(&'static str, String)]) -> bool {
        self.terms.iter().all(|term| {
            let value = fields
                .iter()
                .find(|(name, _)| *name == term.field)
                .map_or("", |(_, value)| value);
            (value == term.value) == term.equal
        })
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn text_selectors_match_as_upstream() {
        let web = labels(&[("app", "web"), ("rank", "3"), ("empty", "")]);
        for (text, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app=web", true),
            ("app == web", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (api, web)", true),
            ("app notin (api)", true),
            ("app=web,rank>2,rank<4", true),
            ("rank>3", false),
            ("empty=", true),
            ("empty in ()", true),
            ("app in (web),!other", true),
        ] {
            assert_eq!(
                LabelSelector::parse(text).expect(text).matches(&web),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_selectors_are_refused() {
        for text in [
            ",", "a,", "a=b=c", "a in b", "a in (b", "a b", "=a", "a=(b)", "-a", "a>x",
        ] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            LabelSelector::parse("a,").expect_err("refused").to_string(),
            "unable to parse requirement: found '', expected: identifier after ','"
        );
    }

    #[test]
    fn object_selectors_match_as_upstream() {
        let web = json!({"app": "web"});
        let selects = |object: Value| {
            LabelSelector::from_object(&object)
                .expect("a selector")
                .matches_json(&web)
        };
        assert!(!selects(Value::Null));
        assert!(selects(json!({})));
        assert!(selects(json!({"matchLabels": {"app": "web"}})));
        assert!(!selects(json!({"matchLabels": {"app": "web", "x": "y"}})));
        assert!(selects(
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["api"]}]})
        ));
        assert!(
            LabelSelector::from_object(
                &json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})
            )
            .is_err()
        );
    }

    #[test]
    fn field_selectors_match_as_upstream() {
        let fields = [
            ("metadata.name", "p".to_owned()),
            ("spec.nodeName", "n=1,2".to_owned()),
        ];
        for (text, expected) in [
            ("", true),
            ("metadata.name=p", true),
            ("metadata.name==p", true),
            ("metadata.name!=p", false),
            ("spec.nodeName=n\\=1\\,2", true),
            ("status.phase!=Failed,metadata.name=p", true),
            ("status.phase=", true),
        ] {
            assert_eq!(
                FieldSelector::parse(text).expect(text).matches(&fields),
                expected,
                "{text}"
            );
        }
        assert!(FieldSelector::parse("a").is_err());
        assert_eq!(
            FieldSelector::parse("spec.nodeName=n,a!=b")
                .expect("parses")
                .required("spec.nodeName"),
            Some("n")
        );
    }

    proptest! {
        #[test]
        fn a_printed_selector_is_read_back(keys in prop::collection::vec("[a-z]{1,4}", 1..4), values in prop::collection::vec("[a-z0-9]{1,4}", 1..4)) {
            let text = keys.iter().map(|k| format!("{k} notin ({})", values.join(","))).collect::<Vec<_>>().join(",");
            let selector = LabelSelector::parse(&text).unwrap();
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
