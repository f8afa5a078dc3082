//! NumPy's `.npy` format: magic, version, a Python dictionary that describes the array, then its bytes.

use std::path::Path;

use super::Found;
use super::array::{Array, Element, found};
use crate::dataset::{DatasetError, Importer, SourceOptions};

/// Images in a `.npy` file, labels in another.
pub(crate) fn read(path: &Path, options: &SourceOptions) -> Result<Found, DatasetError> {
    let Some(label_path) = &options.labels else {
        return Err(DatasetError::file(path, "has images but no labels; give their .npy file with --labels"));
    };
    found(Importer::Npy, path, label_path, load(path)?, load(label_path)?)
}

fn load(path: &Path) -> Result<Array, DatasetError> {
    let bytes = std::fs::read(path).map_err(DatasetError::io(path))?;
    parse(bytes).map_err(|problem| DatasetError::file(path, problem))
}

/// The array in the bytes of a whole `.npy` file.
pub(crate) fn parse(mut file: Vec<u8>) -> Result<Array, String> {
    let (header, start) = split_header(&file)?;
    let header = Header::parse(header)?;
    let (element, big_endian) = element(&header.descr)?;
    if header.fortran_order && header.shape.len() > 1 {
        return Err("the array is in Fortran order; save np.ascontiguousarray(array)".into());
    }
    let expected = header.shape.iter().try_fold(element.bytes(), |size, side| size.checked_mul(*side));
    let given = file.len() - start;
    if expected != Some(given) {
        return Err(format!(
            "an array of shape {:?} and type {} does not have {given} bytes of data; the file is truncated or damaged",
            header.shape, header.descr
        ));
    }
    file.drain(..start);
    Ok(Array { element, big_endian, shape: header.shape, data: file })
}

/// The header's text and where the data begin.
fn split_header(file: &[u8]) -> Result<(&str, usize), String> {
    let damaged = || "the .npy header is damaged".to_owned();
    let version = file.strip_prefix(b"\x93NUMPY").ok_or("is not a .npy file (wrong magic)")?;
    let (start, length) = match version {
        [1, _, a, b, ..] => (10, u16::from_le_bytes([*a, *b]).into()),
        [2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        _ => return Err(damaged()),
    };
    let end = length.checked_add(start).ok_or_else(damaged)?;
    let text = file.get(start..end).and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(damaged)?;
    Ok((text, end))
}

fn element(descr: &str) -> Result<(Element, bool), String> {
    let (order, kind) = descr.split_at_checked(1).ok_or("the array has no element type")?;
    let element = match kind {
        "u1" => Element::U8,
        "i1" => Element::I8,
        "u2" => Element::U16,
        "i2" => Element::I16,
        "u4" => Element::U32,
        "i4" => Element::I32,
        "u8" => Element::U64,
        "i8" => Element::I64,
        "f4" => Element::F32,
        "f8" => Element::F64,
        "f2" => return Err("float16 cannot hold 8-bit pixels exactly; save the array as uint8".into()),
        _ => return Err(format!("element type {descr:?} holds neither pixels nor labels; use uint8 or int64")),
    };
    match order {
        "<" | "|" | "=" => Ok((element, false)),
        ">" => Ok((element, true)),
        _ => Err(format!("element type {descr:?} has an unknown byte order")),
    }
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, keys in any order.
    fn parse(text: &str) -> Result<Self, String> {
        let problem = || format!("the .npy header is not one this program reads: {}", text.trim());
        let dictionary = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(problem)?;
        let value = |key: &str| {
            let (_, rest) = dictionary.split_once(&format!("'{key}'")).ok_or_else(problem)?;
            rest.trim_start().strip_prefix(':').map(str::trim_start).ok_or_else(problem)
        };
        let descr = value("descr")?;
        let descr = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).ok_or_else(problem)?.0;
        let order = value("fortran_order")?;
        let fortran_order = match (order.starts_with("True"), order.starts_with("False")) {
            (true, _) => true,
            (_, true) => false,
            _ => return Err(problem()),
        };
        let shape = value("shape")?.strip_prefix('(').and_then(|s| s.split_once(')')).ok_or_else(problem)?.0;
        let shape = shape
            .split(',')
            .map(str::trim)
            .filter(|side| !side.is_empty())
            .map(|side| side.parse().map_err(|_| problem()))
            .collect::<Result<_, _>>()?;
        Ok(Self { descr: descr.to_owned(), fortran_order, shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    const HEADER: &str = "{'descr': '>i2', 'fortran_order': False, 'shape': (2, 1, 2), }   \n";

    #[test]
    fn big_endian_shorts_are_read() {
        let array = parse(npy(HEADER, &[0, 1, 0, 2, 0, 255, 0, 0])).unwrap();
        assert_eq!((array.element, array.big_endian, array.shape.as_slice()), (Element::I16, true, &[2, 1, 2][..]));
        let images = array.into_images(Path::new("x.npy")).unwrap();
        assert_eq!(images.shape.bytes(), 2);
    }

    #[test]
    fn a_header_may_not_promise_more_than_the_file_holds() {
        let huge = HEADER.replace("(2, 1, 2)", "(4611686018427387904, 4)");
        for header in [HEADER, &huge] {
            assert!(parse(npy(header, &[0; 7])).unwrap_err().contains("truncated"), "{header}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(
            at in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut file = npy(HEADER, &[0; 8]);
            for (index, byte) in at {
                let index = index.index(file.len());
                file[index] = byte;
            }
            file.truncate(keep.index(file.len() + 1));
            if let Ok(array) = parse(file) {
                let sides: usize = array.shape.iter().product();
                prop_assert_eq!(array.data.len(), sides * array.element.bytes());
                let _ = array.into_images(Path::new("x.npy"));
            }
        }
    }
}
