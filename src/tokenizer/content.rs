//! In which form a template wants a message's content: as a string, or as a list of parts.
//!
//! vLLM finds out by whether the template has a loop over the content of a message of a loop over `messages`, and gives every
//! content in that form. The same question is put to the template here, by its `for` and `set` statements alone.

/// How contents are given to a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentFormat {
    /// As a string, parts joined by line feeds.
    String,
    /// As a list of parts.
    Parts,
}

impl ContentFormat {
    /// The form that a template wants.
    pub(crate) fn of(template: &str) -> Self {
        let statements: Vec<Statement<'_>> = statements(template).filter_map(Statement::of).collect();
        let mut lists = vec!["messages"];
        let mut next = 0;
        while let Some(list) = lists.get(next).copied() {
            next += 1;
            for statement in &statements {
                if let Statement::Set { name, value } = statement
                    && is_access(value, list, None)
                    && !lists.contains(name)
                {
                    lists.push(name);
                }
            }
        }
        let loops = || {
            statements.iter().filter_map(|statement| match statement {
                Statement::For { name, over } => Some((*name, *over)),
                Statement::Set { .. } => None,
            })
        };
        let messages: Vec<&str> = loops()
            .filter(|(_, over)| lists.iter().any(|list| is_access(over, list, None)))
            .map(|(name, _)| name)
            .collect();
        let is_over_content = |over: &str| messages.iter().any(|message| is_access(over, message, Some("content")));
        if loops().any(|(_, over)| is_over_content(over)) { Self::Parts } else { Self::String }
    }
}

enum Statement<'a> {
    For { name: &'a str, over: &'a str },
    Set { name: &'a str, value: &'a str },
}

impl<'a> Statement<'a> {
    fn of(text: &'a str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("for ") {
            let (name, over) = rest.split_once(" in ")?;
            // A condition on the items.
            let over = over.split(" if ").next().unwrap_or(over);
            return Some(Self::For { name: name.trim(), over: over.trim() });
        }
        let (name, value) = text.strip_prefix("set ")?.split_once('=')?;
        Some(Self::Set { name: name.trim(), value: value.trim() })
    }
}

/// What stands between `{%` and `%}`, comments left out.
fn statements(template: &str) -> impl Iterator<Item = &str> {
    let mut rest = template;
    std::iter::from_fn(move || {
        loop {
            let open = rest.find("{%").unwrap_or(rest.len());
            let comment = rest.find("{#").unwrap_or(rest.len());
            if comment < open {
                let end = rest[comment..].find("#}")?;
                rest = &rest[comment + end + 2..];
                continue;
            }
            let inside = rest.get(open + 2..)?;
            let end = inside.find("%}")?;
            rest = &inside[end + 2..];
            return Some(inside[..end].trim_matches(['-', '+']).trim());
        }
    })
}

/// Whether an expression is a variable, or its member `key`, perhaps a part of it or under filters and tests.
fn is_access(expression: &str, variable: &str, key: Option<&str>) -> bool {
    let Some(mut rest) = expression.trim_start_matches('(').strip_prefix(variable) else { return false };
    if let Some(key) = key {
        let quoted = |quote: char| {
            let inside = rest.trim_start().strip_prefix('[')?.trim_start().strip_prefix(quote)?;
            inside.strip_prefix(key)?.strip_prefix(quote)?.trim_start().strip_prefix(']')
        };
        let dotted = || rest.strip_prefix('.')?.strip_prefix(key);
        match quoted('\'').or_else(|| quoted('"')).or_else(dotted) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    let rest = rest.trim_start_matches(')');
    let is_slice = rest
        .strip_prefix('[')
        .and_then(|inside| inside.split_once(']'))
        .is_some_and(|(inside, _)| inside.contains(':'));
    is_slice || rest.is_empty() || rest.trim_start().starts_with('|') || rest.starts_with(" is ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_over_a_messages_content_asks_for_parts() {
        let check = |template: &str, expected: ContentFormat| {
            assert_eq!(ContentFormat::of(template), expected, "{template}");
        };
        let around = |inner: &str| format!("{{%- for message in messages -%}}{inner}{{%- endfor %}}");
        use ContentFormat::{Parts, String};
        check("", String);
        check(&around("{{ message.content }}"), String);
        check(&around("{% for c in message.content %}x{% endfor %}"), Parts);
        check(
            &around("{%+ for c in message['content'] | selectattr('type', 'equalto', 'text') %}x{% endfor %}"),
            Parts,
        );
        check(&around("{% for c in message[\"content\"] if c.type == 'text' %}x{% endfor %}"), Parts);
        check(&around("{% for c in message.tool_calls %}x{% endfor %}"), String);
        check(&around("{% for c in message.contents %}x{% endfor %}"), String);
        check(&around("{# {% for c in message.content %} #}"), String);
        // A variable that holds the content is not followed.
        check(&around("{% set content = message.content %}{% for c in content %}x{% endfor %}"), String);
        let renamed =
            "{% set rest = messages[1:] %}{% for m in rest %}{% for c in m['content'] %}x{% endfor %}{% endfor %}";
        check(renamed, Parts);
        check("{% for m in others %}{% for c in m.content %}x{% endfor %}{% endfor %}", String);
        check("{% for", String);
        check("{#", String);
    }
}
