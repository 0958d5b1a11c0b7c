"""The digest by which a model says on what it was trained."""

from neurona_training.data.digest import data_digest
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData


def test_texts_and_rows_count_and_names_of_files_do_not(tmp_path):
    def digest(name, colours, last="19.5"):
        rows = [f"{colours[i % 2]},{i}.5" for i in range(19)]
        (tmp_path / name).write_text("\n".join(["colour,y", *rows, f"{colours[1]},{last}"]))
        return data_digest(load_user_data(UserData(tmp_path / name, target="y")).caller_view)

    first = digest("a.csv", ("blue", "red"))
    assert digest("b.csv", ("blue", "red")) == first
    assert digest("a.csv", ("black", "red")) != first
    assert digest("a.csv", ("blue", "red"), last="19.25") != first
