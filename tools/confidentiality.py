"""Writes medseg_nb/data/static/confidentiality.csv: Table E.1-1 of DICOM PS3.15.

Basic profile codes: edition 2026c, as listed by
dicom-anonymizer 2.1.0 (KitwareMedical, BSD-3-Clause; installed).
Codes of the options: edition 2024e, standard/confidentiality_profile_attributes.json of
github.com/innolitics/dicom-standard at commit 7f4749d09ed3ef2fa70637d376d423a4b13523cd,
which is parsed from the standard's own pages; give its path as the argument.
The editions give the same basic code to every attribute that both list, or the script stops.
Attributes that only 2026c lists have no option codes, so no option keeps them.
"""
import csv
import json
import sys
from pathlib import Path

from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as newer
from pydicom.datadict import keyword_for_tag

table = Path(__file__).resolve().parents[1]/'medseg_nb'/'data'/'static'/'confidentiality.csv'
lists = {'X_Z_U_STAR_TAGS': 'X/Z/U*'} | {f'{c.replace("/", "_")}_TAGS': c for c in
                                         ('D', 'Z', 'X', 'U', 'Z/D', 'X/Z', 'X/D', 'X/Z/D')}
options = {'dates': 'rtnLongFullDatesOpt', 'modified dates': 'rtnLongModifDatesOpt', 'uids': 'rtnUIDsOpt',
           'device': 'rtnDevIdOpt', 'institution': 'rtnInstIdOpt', 'patient': 'rtnPatCharsOpt',
           'descriptors': 'cleanDescOpt', 'structure': 'cleanStructContOpt', 'graphics': 'cleanGraphOpt'}


def main(path):
    older = {x['id'].upper(): x for x in json.loads(Path(path).read_text(encoding='utf-8'))}
    codes = {'%04X%04X' % tag: code
             for name, code in lists.items() for tag in getattr(newer, name) if len(tag) == 2}
    groups = [tag for tag in older if 'X' in tag or 'G' in tag]      # 50xx, 60xx, private: rules, not rows
    wrong = [tag for tag in older if tag not in groups and codes.get(tag) != older[tag]['basicProfile']]
    if wrong: sys.exit(f'The editions differ on {wrong}.')
    rows = [[tag, keyword_for_tag(int(tag, 16)) or older.get(tag, {}).get('name', ''), codes[tag],
             *(older.get(tag, {}).get(o, '') for o in options.values())] for tag in sorted(codes)]
    with open(table, 'w', newline='', encoding='utf-8') as f:
        csv.writer(f, lineterminator='\n').writerows([['tag', 'keyword', 'basic', *options], *rows])
    print(len(rows), 'attributes')


if __name__ == '__main__': main(sys.argv[1])
