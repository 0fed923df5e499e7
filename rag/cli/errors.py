"""Translate errors by their code: say what happened, and what to do with this command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from bento.contract.search import Language


class Message(NamedTuple):
    """One line in both languages. If `details`, the error's own sentence is shown, too."""

    en: str
    uk: str
    details: bool = True


WORDS: Final = {
    "error": Message("error", "помилка"),
    "details": Message("details", "подробиці"),
    "failed": Message("failed", "не оброблено"),
    "more": Message("and {} more", "і ще {}"),
    "address": Message(
        "the service is {} (VISION_ENCODER_URL in {})",
        "сервіс: {} (VISION_ENCODER_URL у {})",
    ),
    "list": Message("full list: {}", "повний перелік: {}"),
    "interrupted": Message(
        "interrupted; run the same command again to continue",
        "перервано; щоб продовжити, запустіть ту саму команду ще раз",
    ),
}

MESSAGES: Final[Mapping[str, Message]] = {
    "bad_answer": Message(
        "the server at VISION_ENCODER_URL is not a vision encoder: correct the address",
        "сервер за адресою VISION_ENCODER_URL не є vision encoder: виправте адресу",
    ),
    "bad_filter": Message(
        "the value of --filter is not valid: give a Qdrant filter as JSON",
        "значення --filter неправильне: передайте фільтр Qdrant у форматі JSON",
    ),
    "bad_line": Message(
        "this line of the manifest is not valid: correct it",
        "цей рядок маніфесту неправильний: виправте його",
    ),
    "bad_name": Message(
        "the file name is not UTF-8: rename the file",
        "ім'я файлу не в UTF-8: перейменуйте файл",
        details=False,
    ),
    "broken_image": Message(
        "the image is broken or incomplete: replace the file",
        "зображення пошкоджене або неповне: замініть файл",
    ),
    "busy": Message(
        "the service is busy: wait a minute and run the command again",
        "сервіс перевантажений: зачекайте хвилину й запустіть команду ще раз",
        details=False,
    ),
    "changed_file": Message(
        "the file changed while the command was running: run the command again",
        "файл змінився під час роботи команди: запустіть команду ще раз",
        details=False,
    ),
    "collection_mismatch": Message(
        "another model made the vectors of this collection: run `vision-rag reindex`, or choose "
        "another collection (--collection)",
        "вектори цієї колекції створила інша модель: запустіть `vision-rag reindex` або виберіть "
        "іншу колекцію (--collection)",
    ),
    "collection_not_found": Message(
        "there is no such collection: check --collection, or create it with "
        "`vision-rag index FOLDER`",
        "такої колекції немає: перевірте --collection або створіть її командою "
        "`vision-rag index ТЕКА`",
    ),
    "connection_cut": Message(
        "the service closed the connection: read its log, then run the command again",
        "сервіс розірвав з'єднання: перегляньте його журнал і запустіть команду ще раз",
    ),
    "empty_file": Message(
        "the file is empty: replace it",
        "файл порожній: замініть його",
        details=False,
    ),
    "empty_path": Message(
        "an empty string is not a file or folder: for the current folder, give .",
        "порожній рядок не є файлом чи текою: для поточної теки вкажіть .",
        details=False,
    ),
    "failures_unwritable": Message(
        "the list of failures cannot be written: give another file with --failures",
        "не вдалося записати перелік невдач: вкажіть інший файл у --failures",
    ),
    "foreign_page": Message(
        "the service accepts this address only with a key: set API_KEY for the service and for "
        "this command",
        "за цією адресою сервіс працює лише з ключем: задайте API_KEY для сервісу й для цієї "
        "команди",
    ),
    "http_error": Message(
        "the server at VISION_ENCODER_URL did not answer as a vision encoder does: check the "
        "address, and any proxy before the service",
        "сервер за адресою VISION_ENCODER_URL відповів не як vision encoder: перевірте адресу та "
        "проксі перед сервісом",
    ),
    "image_not_found": Message(
        "there is no such picture in the index: check its id and --dao-id",
        "такого зображення в індексі немає: перевірте його id і --dao-id",
    ),
    "incomplete_reindex": Message(
        "some pictures cannot be re-embedded, so the collection is unchanged: index them again, or "
        "omit them with --drop-missing",
        "деякі зображення не вдалося обробити новою моделлю, тому колекцію не змінено: "
        "проіндексуйте їх ще раз або пропустіть їх із --drop-missing",
    ),
    "internal_error": Message(
        "the service failed: read its log, then run the command again",
        "у сервісі сталася помилка: перегляньте його журнал і запустіть команду ще раз",
    ),
    "invalid_request": Message(
        "the request is not valid: correct the arguments of the command",
        "запит неправильний: виправте аргументи команди",
    ),
    "invalid_variable": Message(
        "an environment variable is not valid: correct it or unset it",
        "змінна середовища має неправильне значення: виправте або приберіть її",
    ),
    "link_loop": Message(
        "the link leads back to a folder above it, so it was not followed: remove the link, or "
        "leave it out with --exclude",
        "посилання веде назад до теки над ним, тому його пропущено: вилучіть посилання або додайте "
        "його до --exclude",
        details=False,
    ),
    "lost_file": Message(
        "the file is missing or has changed: index it again, or use --drop-missing",
        "файл зник або змінився: проіндексуйте його ще раз або додайте --drop-missing",
        details=False,
    ),
    "mixed_sources": Message(
        "the address and the key come from different places, so nothing was sent: set both in the "
        "environment, or both in .env",
        "адреса й ключ задані в різних місцях, тому нічого не надіслано: задайте обидва в "
        "оточенні або обидва в .env",
    ),
    "model_load_error": Message(
        "the model cannot be loaded: check MODEL_NAME, MODEL_PRETRAINED and DEVICE",
        "не вдалося завантажити модель: перевірте MODEL_NAME, MODEL_PRETRAINED і DEVICE",
    ),
    "no_pictures": Message(
        "there are no pictures to index: check the folder, --include and --exclude",
        "немає зображень для індексування: перевірте теку, --include і --exclude",
    ),
    "no_query": Message(
        "there is nothing to search for: give a text, --image FILE or --like ID",
        "не вказано, що шукати: додайте текст, --image ФАЙЛ або --like ID",
        details=False,
    ),
    "no_standard_input": Message(
        "standard input is closed: pipe a list of files to the command, or omit -",
        "стандартний ввід закрито: передайте команді перелік файлів або приберіть -",
        details=False,
    ),
    "no_such_path": Message(
        "there is no such file or folder: check the path",
        "такого файлу чи теки немає: перевірте шлях",
    ),
    "not_a_file": Message(
        "the path is not a regular file: give a picture file",
        "це не звичайний файл: вкажіть файл зображення",
        details=False,
    ),
    "not_an_image": Message(
        "not an image: convert it to JPEG, PNG, WebP, GIF, BMP or TIFF",
        "це не зображення: перетворіть файл на JPEG, PNG, WebP, GIF, BMP або TIFF",
        details=False,
    ),
    "not_indexed": Message(
        "these pictures are not in the index: check the ids or paths, --dao-id and --collection",
        "цих зображень в індексі немає: перевірте їхні id чи шляхи, --dao-id і --collection",
    ),
    "not_ready": Message(
        "the service is not ready: wait a minute and run the command again",
        "сервіс іще не готовий: зачекайте хвилину й запустіть команду ще раз",
    ),
    "nothing_left": Message(
        "no picture can be re-embedded, so the collection is unchanged: index the pictures again",
        "жодне зображення не вдалося обробити новою моделлю, тому колекцію не змінено: "
        "проіндексуйте зображення ще раз",
    ),
    "output_unwritable": Message(
        "the output cannot be written: free disk space, or send the output to another file",
        "не вдалося записати вивід: звільніть місце на диску або спрямуйте вивід в інший файл",
    ),
    "prune_needs_folder": Message(
        "--prune needs a readable folder with pictures: check that the disk is mounted, and check "
        "--include and --exclude",
        "для --prune потрібна доступна тека із зображеннями: перевірте, чи підключено диск, а "
        "також --include і --exclude",
        details=False,
    ),
    "search_disabled": Message(
        "the service runs without search: start it with QDRANT_ENABLED=true, or use --local",
        "у сервісі вимкнено пошук: запустіть його з QDRANT_ENABLED=true або додайте --local",
        details=False,
    ),
    "store_full": Message(
        "the disk of the store is full: free some space, or move the store (QDRANT_PATH)",
        "диск сховища заповнений: звільніть місце або перенесіть сховище (QDRANT_PATH)",
    ),
    "store_locked": Message(
        "another process uses the store: omit --local to use its service, stop that process, or "
        "set QDRANT_HOST to share a Qdrant server",
        "сховище зайняте іншим процесом: приберіть --local, щоб звертатися до його сервісу, "
        "зупиніть цей процес або задайте QDRANT_HOST, щоб мати спільний сервер Qdrant",
    ),
    "store_unavailable": Message(
        "the store is unavailable: check that Qdrant runs, and check QDRANT_HOST or QDRANT_PATH",
        "сховище недоступне: перевірте, чи працює Qdrant, і перевірте QDRANT_HOST або QDRANT_PATH",
    ),
    "timeout": Message(
        "the service did not answer in time: run the command again, or raise "
        "VISION_ENCODER_TIMEOUT",
        "сервіс не відповів вчасно: запустіть команду ще раз або збільште VISION_ENCODER_TIMEOUT",
    ),
    "too_large": Message(
        "the picture is too large: save a smaller copy, or raise the limit of the service",
        "зображення завелике: збережіть меншу копію або збільште обмеження сервісу",
    ),
    "too_slow": Message(
        "the upload took too long: use smaller pictures, or fewer at a time (--workers)",
        "передавання тривало задовго: візьміть менші зображення або передавайте менше одночасно "
        "(--workers)",
    ),
    "torch_missing": Message(
        "--local needs torch, which is not installed: run pip install 'vision-encoder[service]', "
        "or omit --local to use a service",
        "для --local потрібен torch, який не встановлено: виконайте "
        "pip install 'vision-encoder[service]' або приберіть --local, щоб звертатися до сервісу",
        details=False,
    ),
    "unauthorized": Message(
        "the service did not accept the API key: set API_KEY to one of its keys",
        "сервіс не прийняв ключ API: задайте в API_KEY один із його ключів",
    ),
    "unreachable": Message(
        "the service cannot be reached: start it (make serve), set VISION_ENCODER_URL to its "
        "address, or use --local",
        "сервіс недоступний: запустіть його (make serve), задайте його адресу у VISION_ENCODER_URL "
        "або додайте --local",
    ),
    "unreadable": Message(
        "the path cannot be read: check the disk, the link and your permissions",
        "шлях не вдалося прочитати: перевірте диск, посилання та свої права доступу",
    ),
    "url_failed": Message(
        "the service could not fetch the URL: check it, or download the picture and give its file",
        "сервіс не зміг завантажити зображення за URL: перевірте адресу або завантажте зображення "
        "самі та вкажіть файл",
    ),
    "url_refused": Message(
        "the service does not fetch this URL: download the picture and give its file",
        "сервіс не завантажує зображення за цим URL: завантажте зображення самі та вкажіть файл",
    ),
}


def language(environment: Mapping[str, str] = os.environ) -> Language:
    """Return the language of the locale: Ukrainian if it begins with `uk`, else English."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):  # the first one that is set counts, as in POSIX
        if locale := environment.get(name):
            return "uk" if locale.startswith("uk") else "en"
    return "en"


def word(name: str) -> str:
    """Return an entry of `WORDS` in the user's language."""
    return WORDS[name].uk if language() == "uk" else WORDS[name].en


def explain(code: str, sentence: str) -> tuple[str, str | None]:
    """Return the line for a code in the user's language, and the line of details or None.

    `sentence` is the error's own. For a code that is not in `MESSAGES`, it is the line.
    """
    message = MESSAGES.get(code)
    if message is None:
        return sentence, None
    line = message.uk if language() == "uk" else message.en
    return line, f"{word('details')}: {sentence}" if message.details else None
