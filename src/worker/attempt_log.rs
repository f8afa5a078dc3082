//! The log of one attempt at a shard: what its supervisor did, and what its evaluator wrote. Bounded, and plain text.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex};

use chrono::{SecondsFormat, Utc};

use super::words;

/// Most of the evaluator's output that is kept, its newest bytes.
const MOST_OUTPUT: usize = 64 << 10;
/// Most lines of the supervisor, and longest of them in characters.
const MOST_LINES: usize = 200;
const MOST_OF_LINE: usize = 1000;
/// Lines that watchers are told at once, and longest of them in characters.
const TOLD: usize = 10;
const MOST_OF_TOLD: usize = 300;

/// What a child has written so far, of which the end is kept. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Output(Arc<Mutex<Tail>>);

#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// Bytes ever written.
    total: u64,
}

impl Output {
    pub fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().expect("no panic holds it");
        tail.bytes.extend(bytes);
        tail.total += bytes.len() as u64;
        let excess = tail.bytes.len().saturating_sub(MOST_OUTPUT);
        tail.bytes.drain(..excess);
    }

    /// A place in the output, for [`Output::since`].
    pub fn now(&self) -> u64 {
        self.0.lock().expect("no panic holds it").total
    }

    /// The newest bytes, at most `most`.
    pub fn last(&self, most: usize) -> Vec<u8> {
        let tail = self.0.lock().expect("no panic holds it");
        tail.bytes.iter().skip(tail.bytes.len().saturating_sub(most)).copied().collect()
    }

    /// What was written since, and how many bytes of it were not kept.
    fn since(&self, place: u64) -> (String, u64) {
        let tail = self.0.lock().expect("no panic holds it");
        let written = tail.total.saturating_sub(place);
        let kept = written.min(tail.bytes.len() as u64);
        let bytes: Vec<u8> = tail.bytes.iter().skip(tail.bytes.len() - kept as usize).copied().collect();
        (words::plain(&String::from_utf8_lossy(&bytes)), written - kept)
    }
}

/// Collects the log while the attempt runs.
#[derive(Debug, Default)]
pub struct AttemptLog(Mutex<Parts>);

#[derive(Debug, Default)]
struct Parts {
    lines: Vec<String>,
    /// The evaluators of this attempt, and where in their output it began.
    heard: Vec<(Output, u64)>,
}

impl AttemptLog {
    /// Notes what the supervisor does.
    pub fn say(&self, what: impl Display) {
        let mut parts = self.0.lock().expect("no panic holds it");
        if parts.lines.len() < MOST_LINES {
            let what: String = words::plain(&what.to_string()).replace('\n', " ").chars().take(MOST_OF_LINE).collect();
            parts.lines.push(format!("{} {what}", Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)));
        }
    }

    /// From now on, what this child writes belongs to the attempt.
    pub fn listen(&self, output: Output) {
        let place = output.now();
        self.0.lock().expect("no panic holds it").heard.push((output, place));
    }

    /// What the evaluators have written since they belong to the attempt.
    fn written(&self) -> String {
        let parts = self.0.lock().expect("no panic holds it");
        let one = |(output, place): &(Output, u64)| {
            let (text, lost) = output.since(*place);
            let cut = if lost == 0 { String::new() } else { format!("[{lost} bytes before this were not kept]\n") };
            cut + text.trim_end()
        };
        parts.heard.iter().map(one).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// The whole log.
    pub fn text(&self) -> String {
        let written = self.written();
        let lines = self.0.lock().expect("no panic holds it").lines.join("\n");
        let written = if written.is_empty() { "(nothing)".into() } else { written };
        format!("{lines}\n\nWhat the evaluator wrote:\n{written}\n")
    }

    /// The last lines, for those who watch: what the evaluator wrote, then the supervisor's last word.
    pub fn told(&self) -> Vec<String> {
        let written = self.written();
        let last = self.0.lock().expect("no panic holds it").lines.last().cloned();
        let all: Vec<&str> = written.lines().filter(|line| !line.trim().is_empty()).chain(last.as_deref()).collect();
        let short = |line: &&str| line.chars().take(MOST_OF_TOLD).collect();
        all[all.len().saturating_sub(TOLD)..].iter().map(short).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_this_attempts_words_and_not_those_of_the_one_before() {
        let (output, log) = (Output::default(), AttemptLog::default());
        output.push(b"before\n");
        log.listen(output.clone());
        log.say("started\nwith a break");
        output.push(b"line one\n\x1b[2Jline \xff two\n");
        let text = log.text();
        assert!(!text.contains("before") && text.contains("line one\n[2Jline \u{fffd} two"), "{text}");
        assert!(text.lines().next().unwrap().ends_with(" started with a break"));
        let told = log.told();
        assert_eq!(told[..2], ["line one", "[2Jline \u{fffd} two"]);
        assert!(told[2].ends_with("started with a break"));
    }

    #[test]
    fn an_endless_writer_fills_no_memory_and_its_end_is_kept() {
        let (output, log) = (Output::default(), AttemptLog::default());
        log.listen(output.clone());
        for i in 0..50_000 {
            output.push(format!("line {i}\n").as_bytes());
            log.say(i);
        }
        let text = log.text();
        assert!(text.len() < MOST_OUTPUT + MOST_LINES * 64 && text.ends_with("line 49999\n"));
        assert!(text.contains("bytes before this were not kept"));
        assert_eq!(log.told().len(), TOLD);
    }
}
