//! What a child says in words, cut to what logs, terminals and the database can hold. The child runs a stranger's code.

use crate::protocol::Finding;

/// Longest text that is kept, in characters.
const MOST: usize = 4096;
/// Longest code.
const MOST_OF_CODE: usize = 64;
/// Most bytes that the findings of one question may take as JSON.
const MOST_OF_FINDINGS: usize = 1 << 20;

/// The text without control characters but line breaks and tabs.
pub fn plain(said: &str) -> String {
    said.chars().filter(is_plain).collect()
}

fn is_plain(c: &char) -> bool {
    !c.is_control() || matches!(c, '\n' | '\t')
}

/// The same, and no longer than 4,096 characters.
pub fn text(said: &str) -> String {
    let mut kept: String = said.chars().filter(is_plain).take(MOST).collect();
    if said.chars().filter(is_plain).nth(MOST).is_some() {
        kept.push('…');
    }
    kept
}

/// The code, if it can be one (snake_case); else `unnamed_error`.
pub fn code(said: &str) -> String {
    if is_code(said) { said.into() } else { "unnamed_error".into() }
}

fn is_code(said: &str) -> bool {
    (1..=MOST_OF_CODE).contains(&said.len())
        && said.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Holds findings to a bearable size, codes that are codes, and characters that the database can store. The error is a
/// sentence.
pub fn findings(said: &[Finding]) -> Result<(), String> {
    let json = serde_json::to_string(said).map_err(|e| e.to_string())?;
    if json.len() > MOST_OF_FINDINGS {
        return Err(format!("{} findings of more than {MOST_OF_FINDINGS} bytes", said.len()));
    }
    // JSON writes U+0000 so; a backslash before it is written twice.
    if json.replace(r"\\", "").contains(r"\u0000") {
        return Err("a finding with the character U+0000".into());
    }
    match said.iter().find(|finding| !is_code(&finding.code)) {
        Some(finding) => Err(format!("a finding with the code {:?}", text(&finding.code))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::Weight;

    #[test]
    fn words_are_cut_to_what_can_be_kept() {
        assert_eq!(text("two\nlines\0\u{1b}[2J"), "two\nlines[2J");
        assert_eq!(text(&"é".repeat(4096)).chars().count(), 4096);
        assert_eq!(text(&"é".repeat(5000)).chars().count(), 4097);
        assert_eq!((code("forward_fails"), code("Drop table")), ("forward_fails".into(), "unnamed_error".into()));
        assert_eq!(code(&"a".repeat(65)), "unnamed_error");
    }

    #[test]
    fn findings_that_could_not_be_stored_are_refused() {
        let finding = |code: &str, sentence: &str, evidence| vec![Finding::new(code, Weight::Note, sentence, evidence)];
        assert_eq!(findings(&finding("nan_gradients", r"a\u0000b \n", json!({"n": 3}))), Ok(()));
        let lies = [
            finding("nan_gradients", "a\0b", json!(null)),
            finding("nan_gradients", "a", json!({"\0": 1})),
            finding("nan gradients", "a", json!(null)),
            finding("nan_gradients", "a", json!("x".repeat(1 << 20))),
        ];
        for lie in lies {
            assert!(findings(&lie).is_err(), "{:?}", lie[0].code);
        }
    }
}
