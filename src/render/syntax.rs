//! Reads a template a second time: Tera keeps its syntax tree to itself, and `lint` needs one with byte spans.
//!
//! Tera has accepted the text before this sees it, so the grammar here may be generous: what matters is that every name
//! that Tera would look up is found. What this cannot read is refused, not skipped. PURE. Never: renders anything.

use std::ops::Range;

use tera::Value;

pub type Span = Range<usize>;

pub struct Expr {
    pub span: Span,
    pub kind: Kind,
}

pub type Args = Vec<(String, Expr)>;

pub enum Kind {
    Const(Value),
    Name(String),
    Attr {
        of: Box<Expr>,
        name: String,
        optional: bool,
    },
    Item {
        of: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    Slice {
        of: Box<Expr>,
        bounds: Vec<Expr>,
        optional: bool,
    },
    Filter {
        of: Box<Expr>,
        filter: Filter,
    },
    Test {
        of: Box<Expr>,
        name: String,
        name_span: Span,
        args: Args,
    },
    Call {
        name: String,
        name_span: Span,
        args: Args,
    },
    Component {
        name: String,
        args: Vec<Expr>,
        body: Vec<Node>,
    },
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// Any other operator: both sides are looked up, and a scalar comes out.
    Operator(Vec<Expr>),
    Ternary {
        condition: Box<Expr>,
        yes: Box<Expr>,
        no: Box<Expr>,
    },
    /// An array written out.
    List(Vec<Expr>),
    /// A map written out, or an array with spreads: what is looked up in it.
    Literal(Vec<Expr>),
    Comprehension {
        item: Box<Expr>,
        key: Option<String>,
        value: String,
        target: Box<Expr>,
        condition: Option<Box<Expr>>,
    },
}

pub struct Filter {
    pub name: String,
    pub span: Span,
    pub args: Args,
}

pub enum Node {
    Print(Expr),
    If {
        condition: Expr,
        yes: Vec<Node>,
        no: Vec<Node>,
    },
    For {
        key: Option<String>,
        value: String,
        target: Expr,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Set {
        name: String,
        value: Expr,
        global: bool,
    },
    /// `{% set x %}…{% endset %}` and `{% filter f %}…{% endfilter %}` (no name).
    Capture {
        name: Option<String>,
        global: bool,
        filters: Vec<Filter>,
        body: Vec<Node>,
    },
    Block(Vec<Node>),
    Include {
        name: String,
        span: Span,
    },
    Extends {
        name: String,
        span: Span,
    },
    Component {
        name: String,
        args: Vec<String>,
        body: Vec<Node>,
    },
}

/// Where this reader got lost, and what it had expected there.
pub struct Lost {
    pub span: Span,
    pub expected: &'static str,
}

pub fn parse(text: &str) -> Result<Vec<Node>, Lost> {
    let tokens = tokenize(text)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, end: text.len() };
    let nodes = parser.nodes(&[])?;
    if parser.at < parser.tokens.len() { Err(parser.lost("the end of the template")) } else { Ok(nodes) }
}

#[derive(Clone, PartialEq, Debug)]
enum Token {
    TagStart,
    TagEnd,
    PrintStart,
    PrintEnd,
    Ident(String),
    Text(String),
    Integer(i64),
    Float(f64),
    Op(&'static str),
}

/// Longest first.
const OPERATORS: [&str; 31] = [
    "...", "//", "**", "==", "!=", ">=", "<=", "</", "?.", "?[", "+", "-", "*", "/", "%", "!", ".", ",", ":", "~", "|",
    "=", ">", "<", "(", ")", "[", "]", "{", "}", "@",
];

fn tokenize(text: &str) -> Result<Vec<(Token, Span)>, Lost> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(open) = next_opening(text, at) {
        let inner = open + 2 + usize::from(text[open + 2..].starts_with('-'));
        at = match &text[open..open + 2] {
            "{#" => {
                let close = text[open + 2..].find("#}");
                open + 2 + close.ok_or(Lost { span: open..open + 2, expected: "a closing `#}`" })? + 2
            }
            "{{" => {
                tokens.push((Token::PrintStart, open..inner));
                inside(text, inner, "}}", &mut tokens)?
            }
            _ => match raw_end(text, open) {
                Some(end) => end,
                None => {
                    tokens.push((Token::TagStart, open..inner));
                    inside(text, inner, "%}", &mut tokens)?
                }
            },
        };
    }
    Ok(tokens)
}

fn next_opening(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    (from..bytes.len().saturating_sub(1)).find(|at| bytes[*at] == b'{' && matches!(bytes[*at + 1], b'{' | b'%' | b'#'))
}

/// Where the text goes on after `{% raw %}…{% endraw %}`, if that is what begins at `open`.
fn raw_end(text: &str, open: usize) -> Option<usize> {
    let mut at = tag_named(text, open, "raw")?;
    loop {
        at += text[at..].find("{%")?;
        match tag_named(text, at, "endraw") {
            Some(end) => return Some(end),
            None => at += 2,
        }
    }
}

/// The end of the tag at `open` if it is nothing but `name`.
fn tag_named(text: &str, open: usize, name: &str) -> Option<usize> {
    let rest = text[open + 2..].trim_start_matches('-').trim_start().strip_prefix(name)?.trim_start();
    let rest = rest.strip_prefix('-').unwrap_or(rest).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

fn inside(text: &str, from: usize, close: &str, tokens: &mut Vec<(Token, Span)>) -> Result<usize, Lost> {
    let mut at = from;
    loop {
        at += text[at..].len() - text[at..].trim_ascii_start().len();
        let rest = &text[at..];
        let dash = usize::from(rest.starts_with('-'));
        if rest[dash..].starts_with(close) {
            let end = at + dash + close.len();
            tokens.push((if close == "}}" { Token::PrintEnd } else { Token::TagEnd }, at..end));
            return Ok(end);
        }
        let Some(first) = rest.bytes().next() else {
            return Err(Lost { span: from..from, expected: "a closing delimiter" });
        };
        let (token, length) = match first {
            b'\'' | b'"' | b'`' => {
                string(rest, char::from(first)).ok_or(Lost { span: at..at + 1, expected: "a string" })?
            }
            b'0'..=b'9' => number(rest),
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                (Token::Ident(rest[..length].to_owned()), length)
            }
            _ => match OPERATORS.iter().find(|op| rest.starts_with(**op)) {
                Some(op) => (Token::Op(op), op.len()),
                None => return Err(Lost { span: at..at + 1, expected: "an expression" }),
            },
        };
        tokens.push((token, at..at + length));
        at += length;
    }
}

fn string(rest: &str, quote: char) -> Option<(Token, usize)> {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((Token::Text(text), at + 1)),
            '\\' => text.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            }),
            _ => text.push(c),
        }
    }
    None
}

fn number(rest: &str) -> (Token, usize) {
    let digits = |from: usize| rest[from..].bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(0);
    if rest[whole..].starts_with('.') {
        let length = whole + 1 + digits(whole + 1);
        (Token::Float(rest[..length].parse().unwrap_or(0.0)), length)
    } else {
        (Token::Integer(rest[..whole].parse().unwrap_or(0)), whole)
    }
}

/// Tera itself stops at 40.
const DEPTH_MAX: usize = 200;

struct Parser {
    tokens: Vec<(Token, Span)>,
    at: usize,
    depth: usize,
    /// Length of the text.
    end: usize,
}

/// How tightly an operator binds to what is left and right of it; Tera's own numbers.
fn binding(op: &str) -> Option<(u8, u8)> {
    Some(match op {
        "or" => (1, 2),
        "and" => (3, 4),
        "in" | "is" | "not" => (5, 6),
        "==" | "!=" | "<" | "<=" | ">" | ">=" => (7, 8),
        "+" | "-" => (11, 12),
        "*" | "/" | "%" | "~" | "//" => (13, 14),
        "**" => (16, 15),
        "|" => (17, 18),
        _ => return None,
    })
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn span(&self) -> Span {
        self.tokens.get(self.at).map_or(self.end..self.end, |(_, span)| span.clone())
    }

    /// The end of the token before this one.
    fn behind(&self) -> usize {
        self.at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or(0, |(_, span)| span.end)
    }

    fn lost(&self, expected: &'static str) -> Lost {
        Lost { span: self.span(), expected }
    }

    fn eat(&mut self, token: &Token) -> bool {
        let same = self.peek() == Some(token);
        self.at += usize::from(same);
        same
    }

    fn op(&mut self, op: &'static str) -> bool {
        self.eat(&Token::Op(op))
    }

    fn word(&mut self, word: &str) -> bool {
        let same = matches!(self.peek(), Some(Token::Ident(ident)) if ident == word);
        self.at += usize::from(same);
        same
    }

    fn expect(&mut self, token: &Token, expected: &'static str) -> Result<(), Lost> {
        if self.eat(token) { Ok(()) } else { Err(self.lost(expected)) }
    }

    fn ident(&mut self) -> Result<(String, Span), Lost> {
        let span = self.span();
        match self.peek() {
            Some(Token::Ident(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok((name, span))
            }
            _ => Err(self.lost("a name")),
        }
    }

    fn text(&mut self) -> Result<(String, Span), Lost> {
        let span = self.span();
        match self.peek() {
            Some(Token::Text(text)) => {
                let text = text.clone();
                self.at += 1;
                Ok((text, span))
            }
            _ => Err(self.lost("a string")),
        }
    }

    fn dotted(&mut self) -> Result<String, Lost> {
        let mut name = self.ident()?.0;
        while self.op(".") {
            name.push('.');
            name.push_str(&self.ident()?.0);
        }
        Ok(name)
    }

    /// Up to a tag that begins with one of `ends`; that tag's name is left to be read. With none: up to the end.
    fn nodes(&mut self, ends: &[&str]) -> Result<Vec<Node>, Lost> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.lost("less nesting"));
        }
        let mut nodes = Vec::new();
        loop {
            match self.peek() {
                None if ends.is_empty() => break,
                None => return Err(self.lost("an end tag")),
                Some(Token::PrintStart) => {
                    self.at += 1;
                    nodes.push(Node::Print(self.expr(0)?));
                    self.expect(&Token::PrintEnd, "`}}`")?;
                }
                Some(Token::TagStart) => {
                    self.at += 1;
                    let ended = match self.peek() {
                        Some(Token::Ident(word)) => ends.contains(&word.as_str()),
                        Some(Token::Op("</")) => ends.contains(&"</"),
                        _ => false,
                    };
                    if ended {
                        break;
                    }
                    nodes.extend(self.tag()?);
                    self.expect(&Token::TagEnd, "`%}`")?;
                }
                Some(_) => return Err(self.lost("text or a tag")),
            }
        }
        self.depth -= 1;
        Ok(nodes)
    }

    fn tag_end(&mut self) -> Result<(), Lost> {
        self.expect(&Token::TagEnd, "`%}`")
    }

    fn tag(&mut self) -> Result<Option<Node>, Lost> {
        if self.op("<") {
            return self.component_with_body().map(|call| Some(Node::Print(call)));
        }
        let (word, _) = self.ident()?;
        Ok(Some(match word.as_str() {
            "set" | "set_global" => self.set(word == "set_global")?,
            "include" => {
                let (name, span) = self.text()?;
                Node::Include { name, span }
            }
            "extends" => {
                let (name, span) = self.text()?;
                Node::Extends { name, span }
            }
            "block" => {
                let name = self.ident()?.0;
                self.tag_end()?;
                let body = self.nodes(&["endblock"])?;
                self.at += 1;
                self.word(&name);
                Node::Block(body)
            }
            "for" => self.for_loop()?,
            "if" => self.if_else()?,
            "filter" => {
                let mut filters = vec![self.filter()?];
                while self.op("|") {
                    filters.push(self.filter()?);
                }
                self.tag_end()?;
                let body = self.nodes(&["endfilter"])?;
                self.at += 1;
                Node::Capture { name: None, global: false, filters, body }
            }
            "component" => self.component()?,
            "break" | "continue" => return Ok(None),
            _ => return Err(self.lost("a tag that is known here")),
        }))
    }

    fn set(&mut self, global: bool) -> Result<Node, Lost> {
        let name = self.ident()?.0;
        if self.op("=") {
            return Ok(Node::Set { name, value: self.expr(0)?, global });
        }
        let mut filters = Vec::new();
        while self.op("|") {
            filters.push(self.filter()?);
        }
        self.tag_end()?;
        let body = self.nodes(&["endset"])?;
        self.at += 1;
        Ok(Node::Capture { name: Some(name), global, filters, body })
    }

    fn loop_names(&mut self) -> Result<(Option<String>, String), Lost> {
        let first = self.ident()?.0;
        if self.op(",") { Ok((Some(first), self.ident()?.0)) } else { Ok((None, first)) }
    }

    fn for_loop(&mut self) -> Result<Node, Lost> {
        let (key, value) = self.loop_names()?;
        if !self.word("in") {
            return Err(self.lost("`in`"));
        }
        let target = self.expr(0)?;
        self.tag_end()?;
        let body = self.nodes(&["endfor", "else"])?;
        let mut otherwise = Vec::new();
        if self.word("else") {
            self.tag_end()?;
            otherwise = self.nodes(&["endfor"])?;
        }
        self.at += 1;
        Ok(Node::For { key, value, target, body, otherwise })
    }

    fn if_else(&mut self) -> Result<Node, Lost> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.lost("less nesting"));
        }
        let condition = self.expr(0)?;
        self.tag_end()?;
        let yes = self.nodes(&["endif", "else", "elif"])?;
        let no = if self.word("elif") {
            vec![self.if_else()?]
        } else if self.word("else") {
            self.tag_end()?;
            let no = self.nodes(&["endif"])?;
            self.at += 1;
            no
        } else {
            self.at += 1;
            Vec::new()
        };
        self.depth -= 1;
        Ok(Node::If { condition, yes, no })
    }

    fn component(&mut self) -> Result<Node, Lost> {
        let name = self.dotted()?;
        self.expect(&Token::Op("("), "`(`")?;
        let mut args = vec!["body".to_owned()];
        while !self.op(")") {
            let _ = self.op("...") || self.op("@");
            args.push(self.ident()?.0);
            if self.op(":") {
                self.ident()?;
            }
            if self.op("=") {
                self.expr(0)?;
            }
            self.op(",");
        }
        if self.op("{") {
            self.literal("}", &mut false)?;
        }
        self.tag_end()?;
        let body = self.nodes(&["endcomponent"])?;
        self.at += 1;
        if matches!(self.peek(), Some(Token::Ident(_))) {
            self.dotted()?;
        }
        Ok(Node::Component { name, args, body })
    }

    /// After `<`: the component's name and attributes.
    fn component_head(&mut self) -> Result<(String, Vec<Expr>), Lost> {
        let name = self.dotted()?;
        let mut args = Vec::new();
        loop {
            if self.op("{") {
                self.expect(&Token::Op("..."), "`...`")?;
                args.push(self.expr(0)?);
                self.expect(&Token::Op("}"), "`}`")?;
            } else if matches!(self.peek(), Some(Token::Ident(_))) {
                let (attribute, span) = self.ident()?;
                args.push(if !self.op("=") {
                    Expr { span, kind: Kind::Name(attribute) }
                } else if self.op("{") {
                    let value = self.expr(0)?;
                    self.expect(&Token::Op("}"), "`}`")?;
                    value
                } else {
                    let (text, span) = self.text()?;
                    Expr { span, kind: Kind::Const(Value::from(text)) }
                });
            } else {
                return Ok((name, args));
            }
        }
    }

    fn component_with_body(&mut self) -> Result<Expr, Lost> {
        let start = self.span().start;
        let (name, args) = self.component_head()?;
        self.expect(&Token::Op(">"), "`>`")?;
        self.tag_end()?;
        let body = self.nodes(&["</"])?;
        self.at += 1;
        self.dotted()?;
        self.expect(&Token::Op(">"), "`>`")?;
        Ok(Expr { span: start..self.behind(), kind: Kind::Component { name, args, body } })
    }

    fn args(&mut self) -> Result<Args, Lost> {
        let mut args = Vec::new();
        if !self.op("(") {
            return Ok(args);
        }
        while !self.op(")") {
            let name = self.ident()?.0;
            self.expect(&Token::Op("="), "`=`")?;
            args.push((name, self.expr(0)?));
            if !self.op(",") && self.peek() != Some(&Token::Op(")")) {
                return Err(self.lost("`,` or `)`"));
            }
        }
        Ok(args)
    }

    fn filter(&mut self) -> Result<Filter, Lost> {
        let (name, span) = self.ident()?;
        Ok(Filter { name, span, args: self.args()? })
    }

    fn expr(&mut self, min: u8) -> Result<Expr, Lost> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.lost("less nesting"));
        }
        let start = self.span().start;
        let mut left = self.operand()?;
        loop {
            let op = match self.peek() {
                Some(Token::Op("[" | "?[")) => {
                    left = self.subscript(left)?;
                    continue;
                }
                Some(Token::Ident(word)) if word == "if" => {
                    if min > 0 {
                        break;
                    }
                    self.at += 1;
                    let condition = Box::new(self.expr(0)?);
                    if !self.word("else") {
                        return Err(self.lost("`else`"));
                    }
                    let no = Box::new(self.expr(0)?);
                    let kind = Kind::Ternary { condition, yes: Box::new(left), no };
                    left = Expr { span: start..self.behind(), kind };
                    break;
                }
                Some(Token::Ident(word)) => word.clone(),
                Some(Token::Op(op)) => (*op).to_owned(),
                _ => break,
            };
            let Some((left_power, right_power)) = binding(&op) else { break };
            if left_power < min {
                break;
            }
            self.at += 1;
            let kind = match op.as_str() {
                "|" => Kind::Filter { of: Box::new(left), filter: self.filter()? },
                "is" => {
                    let negated = self.word("not");
                    let (name, name_span) = self.ident()?;
                    let test = Kind::Test { of: Box::new(left), name, name_span, args: self.args()? };
                    if negated { Kind::Not(Box::new(Expr { span: start..self.behind(), kind: test })) } else { test }
                }
                _ => {
                    if op == "not" && !self.word("in") {
                        return Err(self.lost("`in`"));
                    }
                    let right = self.expr(right_power)?;
                    match op.as_str() {
                        "and" => Kind::And(Box::new(left), Box::new(right)),
                        "or" => Kind::Or(Box::new(left), Box::new(right)),
                        _ => Kind::Operator(vec![left, right]),
                    }
                }
            };
            left = Expr { span: start..self.behind(), kind };
        }
        self.depth -= 1;
        Ok(left)
    }

    fn operand(&mut self) -> Result<Expr, Lost> {
        let start = self.span().start;
        let Some(token) = self.peek().cloned() else { return Err(self.lost("an expression")) };
        self.at += 1;
        let kind = match token {
            Token::Integer(number) => Kind::Const(Value::from(number)),
            Token::Float(number) => Kind::Const(Value::from(number)),
            Token::Text(text) => Kind::Const(Value::from(text)),
            Token::Op("-") => Kind::Operator(vec![self.expr(20)?]),
            Token::Op("(") => {
                let inner = self.expr(0)?;
                self.expect(&Token::Op(")"), "`)`")?;
                return Ok(inner);
            }
            Token::Op("[") => self.array()?,
            Token::Op("{") => Kind::Literal(self.literal("}", &mut false)?),
            Token::Op("<") => {
                let (name, args) = self.component_head()?;
                self.expect(&Token::Op("/"), "`/>`")?;
                self.expect(&Token::Op(">"), "`/>`")?;
                Kind::Component { name, args, body: Vec::new() }
            }
            Token::Ident(name) => match name.as_str() {
                "true" | "True" => Kind::Const(Value::from(true)),
                "false" | "False" => Kind::Const(Value::from(false)),
                "none" | "None" | "null" => Kind::Const(Value::none()),
                "not" => Kind::Not(Box::new(self.expr(5)?)),
                _ => return self.chain(name, start),
            },
            _ => {
                self.at -= 1;
                return Err(self.lost("an expression"));
            }
        };
        Ok(Expr { span: start..self.behind(), kind })
    }

    /// A name and what hangs on it: `a.b?.c[0]`, or a call.
    fn chain(&mut self, name: String, start: usize) -> Result<Expr, Lost> {
        let name_span = start..self.behind();
        if self.peek() == Some(&Token::Op("(")) {
            let args = self.args()?;
            return Ok(Expr { span: start..self.behind(), kind: Kind::Call { name, name_span, args } });
        }
        let mut expr = Expr { span: name_span, kind: Kind::Name(name) };
        loop {
            let optional = self.peek() == Some(&Token::Op("?."));
            if self.op(".") || self.op("?.") {
                let name = self.ident()?.0;
                let kind = Kind::Attr { of: Box::new(expr), name, optional };
                expr = Expr { span: start..self.behind(), kind };
            } else if matches!(self.peek(), Some(Token::Op("[" | "?["))) {
                expr = self.subscript(expr)?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn subscript(&mut self, of: Expr) -> Result<Expr, Lost> {
        let start = of.span.start;
        let optional = self.op("?[");
        self.at += usize::from(!optional);
        let of = Box::new(of);
        let mut bounds = Vec::new();
        let mut colons = 0;
        while !self.op("]") {
            if self.op(":") {
                colons += 1;
            } else {
                bounds.push(self.expr(0)?);
            }
        }
        let kind = if colons > 0 {
            Kind::Slice { of, bounds, optional }
        } else {
            let index = Box::new(bounds.pop().ok_or_else(|| self.lost("an index"))?);
            Kind::Item { of, index, optional }
        };
        Ok(Expr { span: start..self.behind(), kind })
    }

    fn array(&mut self) -> Result<Kind, Lost> {
        let mark = self.at;
        if self.peek() != Some(&Token::Op("]")) && !self.op("...") {
            let item = self.expr(0)?;
            if self.word("for") {
                let (key, value) = self.loop_names()?;
                if !self.word("in") {
                    return Err(self.lost("`in`"));
                }
                let target = Box::new(self.expr(1)?);
                let condition = if self.word("if") { Some(Box::new(self.expr(1)?)) } else { None };
                self.expect(&Token::Op("]"), "`]`")?;
                return Ok(Kind::Comprehension { item: Box::new(item), key, value, target, condition });
            }
        }
        self.at = mark;
        let mut spread = false;
        let values = self.literal("]", &mut spread)?;
        Ok(if spread { Kind::Literal(values) } else { Kind::List(values) })
    }

    /// The values of an array or map, up to `close`.
    fn literal(&mut self, close: &'static str, spread: &mut bool) -> Result<Vec<Expr>, Lost> {
        let mut values = Vec::new();
        while !self.op(close) {
            let spreads = self.op("...");
            *spread |= spreads;
            if !spreads && close == "}" {
                // The key: a literal.
                self.at += 1;
                self.expect(&Token::Op(":"), "`:`")?;
            }
            values.push(self.expr(0)?);
            if !self.op(",") && self.peek() != Some(&Token::Op(close)) {
                return Err(self.lost("`,` or the end of the list"));
            }
        }
        Ok(values)
    }
}

/// One thing of the tree, for questions that need no scope.
pub enum Item<'a> {
    Node(&'a Node),
    Expr(&'a Expr),
    Filter(&'a Filter),
}

/// Shows every node, expression and filter to `see`, outer ones first.
pub fn walk<'a>(nodes: &'a [Node], see: &mut dyn FnMut(Item<'a>)) {
    for node in nodes {
        see(Item::Node(node));
        match node {
            Node::Print(expr) | Node::Set { value: expr, .. } => walk_expr(expr, see),
            Node::If { condition, yes, no } => {
                walk_expr(condition, see);
                walk(yes, see);
                walk(no, see);
            }
            Node::For { target, body, otherwise, .. } => {
                walk_expr(target, see);
                walk(body, see);
                walk(otherwise, see);
            }
            Node::Capture { filters, body, .. } => {
                filters.iter().for_each(|filter| walk_filter(filter, see));
                walk(body, see);
            }
            Node::Block(body) | Node::Component { body, .. } => walk(body, see),
            Node::Include { .. } | Node::Extends { .. } => {}
        }
    }
}

fn walk_filter<'a>(filter: &'a Filter, see: &mut dyn FnMut(Item<'a>)) {
    see(Item::Filter(filter));
    filter.args.iter().for_each(|(_, value)| walk_expr(value, see));
}

fn walk_expr<'a>(expr: &'a Expr, see: &mut dyn FnMut(Item<'a>)) {
    see(Item::Expr(expr));
    match &expr.kind {
        Kind::Const(_) | Kind::Name(_) => {}
        Kind::Attr { of, .. } | Kind::Not(of) => walk_expr(of, see),
        Kind::Item { of, index, .. } => {
            walk_expr(of, see);
            walk_expr(index, see);
        }
        Kind::Slice { of, bounds, .. } => {
            walk_expr(of, see);
            bounds.iter().for_each(|bound| walk_expr(bound, see));
        }
        Kind::Filter { of, filter } => {
            walk_expr(of, see);
            walk_filter(filter, see);
        }
        Kind::Test { of, args, .. } => {
            walk_expr(of, see);
            args.iter().for_each(|(_, value)| walk_expr(value, see));
        }
        Kind::Call { args, .. } => args.iter().for_each(|(_, value)| walk_expr(value, see)),
        Kind::Component { args, body, .. } => {
            args.iter().for_each(|value| walk_expr(value, see));
            walk(body, see);
        }
        Kind::And(left, right) | Kind::Or(left, right) => {
            walk_expr(left, see);
            walk_expr(right, see);
        }
        Kind::Operator(values) | Kind::List(values) | Kind::Literal(values) => {
            values.iter().for_each(|value| walk_expr(value, see));
        }
        Kind::Ternary { condition, yes, no } => {
            [condition, yes, no].into_iter().for_each(|part| walk_expr(part, see));
        }
        Kind::Comprehension { item, target, condition, .. } => {
            walk_expr(target, see);
            condition.iter().for_each(|condition| walk_expr(condition, see));
            walk_expr(item, see);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_template_is_refused_and_never_a_panic() {
        for text in
            ["{{", "{{ a", "{{ 'a", "{% if", "{% for x in %}", "{{ a[ }}", "{{ {1: } }}", "{#", "{{ ü }}", "{% x %}"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["", "{", "${x} {x} %} }}", "{{ a?.b?[0][1:-1] }}", "{%- raw -%}{{{%- endraw -%}", "{{ -1 ** 2 }}"]
        {
            assert!(parse(text).is_ok(), "{text}");
        }
    }
}
