//! Choosing a representation by `Accept`.

use axum::http::{HeaderMap, header};

use super::problem::{Code, Problem};

/// The first of `offered` (media types, best first) that has the highest quality in `Accept`.
pub fn choose(headers: &HeaderMap, offered: &[&'static str]) -> Result<&'static str, Problem> {
    let accepted: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let accepted = accepted.join(",");
    if accepted.trim().is_empty() {
        return Ok(offered[0]);
    }
    let best = offered.iter().rev().map(|offer| (quality(&accepted, offer), *offer)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((quality, offer)) if quality > 0.0 => Ok(offer),
        _ => Err(Problem::new(Code::NotAcceptable, format!("this resource comes as {}", offered.join(", ")))),
    }
}

/// The quality that the most specific matching range gives to `offer`; 0 when nothing matches.
fn quality(accepted: &str, offer: &str) -> f64 {
    let (kind, _) = offer.split_once('/').unwrap_or((offer, ""));
    let mut found = (0, 0.0);
    for range in accepted.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or("").to_ascii_lowercase();
        let specificity = match name.as_str() {
            "*/*" => 1,
            n if n == offer => 3,
            n if n.strip_suffix("/*") == Some(kind) => 2,
            _ => continue,
        };
        let q = parts.find_map(|p| p.strip_prefix("q=")).map_or(Some(1.0), |q| q.trim().parse().ok()).unwrap_or(0.0);
        if specificity > found.0 {
            found = (specificity, q);
        }
    }
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &str) -> Result<&'static str, u16> {
        let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
        choose(&headers, &["application/json", "text/csv", "text/markdown"]).map_err(|p| p.status)
    }

    #[test]
    fn the_most_wanted_offer_wins_and_ties_go_to_the_first() {
        assert_eq!(chosen("*/*"), Ok("application/json"));
        assert_eq!(chosen("text/*"), Ok("text/csv"));
        assert_eq!(chosen("text/csv;q=0.5, text/markdown"), Ok("text/markdown"));
        assert_eq!(chosen("application/json;q=0, */*;q=0.1"), Ok("text/csv"));
        assert_eq!(chosen("text/html, text/csv; charset=utf-8; q=0.9"), Ok("text/csv"));
        assert_eq!(chosen("image/png"), Err(406));
    }
}
