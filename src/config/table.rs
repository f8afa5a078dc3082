//! The settings as README's table, made of their comments and defaults.

use serde_json::Value;
use utoipa::PartialSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema};

use super::Settings;

const GIB: u64 = 1 << 30;

/// A Markdown table: name, default, meaning.
pub fn table() -> String {
    let defaults = serde_json::to_value(Settings::default()).expect("settings are plain data");
    let mut rows = String::from("| setting | default | what |\n|---|---|---|\n");
    for (name, what, default) in described("", Settings::schema(), &defaults) {
        let default = match name.as_str() {
            // Depends on the environment.
            "data_dir" => "`~/.local/share/gauntlet`".into(),
            _ => shown(&default),
        };
        rows += &format!("| `{name}` | {default} | {} |\n", what.replace('\n', " ").trim_end_matches('.'));
    }
    rows
}

fn shown(default: &Value) -> String {
    match default {
        Value::Null => "unset".into(),
        Value::String(text) => format!("`{text}`"),
        Value::Number(n) if n.as_u64().is_some_and(|n| n >= GIB && n % GIB == 0) => {
            format!("{} GiB", n.as_u64().unwrap_or(0) / GIB)
        }
        other => format!("`{other}`"),
    }
}

/// Name, comment and default of every setting below `prefix`, in the order of the code.
fn described(prefix: &str, schema: RefOr<Schema>, defaults: &Value) -> Vec<(String, String, Value)> {
    let Some(object) = object(schema) else { return Vec::new() };
    let mut all = Vec::new();
    for (name, schema) in object.properties {
        let default = &defaults[&name];
        let full = format!("{prefix}{name}");
        if default.is_object() {
            all.extend(described(&format!("{full}."), schema, default));
        } else {
            let what = self::object(schema).and_then(|o| o.description).unwrap_or_default();
            all.push((full, what, default.clone()));
        }
    }
    all
}

fn object(schema: RefOr<Schema>) -> Option<Object> {
    match schema {
        RefOr::T(Schema::Object(object)) => Some(object),
        // A nested struct together with the comment of its field.
        RefOr::T(Schema::AllOf(all)) => all.items.into_iter().find_map(object),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::known;
    use super::*;

    #[test]
    fn readme_has_the_table_of_the_code() {
        let table = table();
        assert!(include_str!("../../README.md").contains(&table), "put this into README.md:\n{table}");
    }

    #[test]
    fn every_setting_is_described() {
        let table = table();
        for name in known() {
            let row = table.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            assert!(row.is_some_and(|row| row.split('|').nth(3).is_some_and(|what| what.trim().len() > 5)), "{name}");
        }
    }
}
